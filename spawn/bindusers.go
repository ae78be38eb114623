package spawn

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"machined/internal/userdb"
	"machined/spawn/settings"
	"machined/spawn/stage"
)

// planBindUsers looks up the users of the host who are to exist inside. The UID
// range of the machine is known.
func (m *machine) planBindUsers(db userdb.DB) error {
	m.plan.BindUsers = nil
	seen := map[string]bool{}
	for _, name := range m.opts.BindUsers {
		if seen[name] {
			continue
		}
		seen[name] = true
		u, err := bindUser(db, name, m.opts.BindUserShell, m.plan.Userns)
		if err != nil {
			return err
		}
		u.Groups = slices.Compact(slices.Sorted(slices.Values(m.opts.BindUserGroups)))
		m.plan.BindUsers = append(m.plan.BindUsers, u)
	}
	return nil
}

// bindUser refuses whom an image can't be told apart from its own: in stock's words.
func bindUser(db userdb.DB, name string, shell settings.BindUserShell, ns *stage.Userns) (stage.BindUser, error) {
	u, err := db.User(name)
	switch {
	case errors.Is(err, userdb.ErrNotFound):
		return stage.BindUser{}, fmt.Errorf("Failed to resolve user '%s': No such user", name)
	case err != nil:
		return stage.BindUser{}, err
	case u.UID == 0 || name == "root":
		return stage.BindUser{}, errors.New("Mapping 'root' user not supported, sorry.")
	case u.UID == userdb.Overflow || name == "nobody":
		return stage.BindUser{}, errors.New("Mapping 'nobody' user not supported, sorry.")
	case inRange(ns, u.UID):
		return stage.BindUser{}, fmt.Errorf("UID of user '%s' to map is already in container UID range, refusing.", name)
	}
	g, err := db.Group(u.GID)
	switch {
	case err != nil:
		return stage.BindUser{}, fmt.Errorf("Failed to resolve group of user '%s': %w", name, err)
	case inRange(ns, g.GID):
		return stage.BindUser{}, fmt.Errorf("GID of group '%s' to map is already in container GID range, refusing.", g.Name)
	case g.Name != u.Name:
		// One user and one group appear inside: it has to be the user's own.
		return stage.BindUser{}, errors.New("Sorry, mapping users without private groups is currently not supported.")
	}
	if st, err := os.Stat(u.Home); err != nil {
		return stage.BindUser{}, fmt.Errorf("Failed to stat %s: %w", u.Home, errors.Unwrap(err))
	} else if !st.IsDir() {
		return stage.BindUser{}, fmt.Errorf("home directory %s of user '%s' is not a directory", u.Home, name)
	}
	out := stage.BindUser{
		Name: name, Home: u.Home, UID: u.UID, GID: u.GID, Shell: shell.Path,
		Passwords: u.Passwords, GroupPasswords: g.Passwords, SSHKeys: u.SSHKeys,
	}
	if shell.Copy {
		out.Shell = u.Shell
	}
	return out, nil
}

// inRange tells whether the machine has the host's ID already.
func inRange(ns *stage.Userns, id uint32) bool {
	return ns != nil && id >= ns.Base && id-ns.Base < ns.Count
}
