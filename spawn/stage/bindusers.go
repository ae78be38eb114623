package stage

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// IDs that users of the host get inside (systemd's UIDS-GIDS document: "mapped
// host users").
const (
	mapUIDMin = 60514
	mapUIDMax = 60577
)

// accountsSize bounds /etc/passwd and /etc/group of the image, which may be anything.
const accountsSize = 16 << 20

// userDB and userHome are where a machine finds its host's users (nss-systemd(8)).
const (
	userDB   = "/run/host/userdb/"
	userHome = "/run/host/home/"
)

// Maps are the lines of uid_map and gid_map (user_namespaces(7)), in order.
func (u *Userns) Maps() (users, groups []Mapping) {
	list := slices.Clone(u.Users)
	slices.SortFunc(list, func(a, b UserMapping) int { return int(int64(a.Inside) - int64(b.Inside)) })
	var next uint32
	upTo := func(end uint32) {
		if end > next {
			m := Mapping{next, u.Base + next, end - next}
			users, groups = append(users, m), append(groups, m)
		}
		next = end + 1
	}
	for _, m := range list {
		upTo(m.Inside)
		users = append(users, Mapping{m.Inside, m.HostUID, 1})
		groups = append(groups, Mapping{m.Inside, m.HostGID, 1})
	}
	if next < u.Count {
		upTo(u.Count)
	}
	return users, groups
}

// accounts are the names and IDs that the image knows already.
type accounts struct {
	names map[string]bool
	ids   map[uint64]bool
}

// readAccounts reads passwd(5) or group(5).
func readAccounts(r io.Reader) (accounts, error) {
	a := accounts{map[string]bool{}, map[uint64]bool{}}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		f := strings.Split(lines.Text(), ":")
		a.names[f[0]] = true
		if len(f) > 2 {
			if n, err := strconv.ParseUint(f[2], 10, 32); err == nil {
				a.ids[n] = true
			}
		}
	}
	return a, lines.Err()
}

// imageAccounts reads such a file of the image; a missing one is empty.
func (o *outer) imageAccounts(name string) (accounts, error) {
	fd, err := o.root.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, unix.ENOENT) {
		return readAccounts(strings.NewReader(""))
	}
	if err != nil {
		return accounts{}, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return accounts{}, err
	}
	if !st.Mode().IsRegular() || st.Size() > accountsSize {
		return accounts{}, fmt.Errorf("%s of the image is not a regular file of at most %d bytes", name, accountsSize)
	}
	a, err := readAccounts(io.LimitReader(f, accountsSize))
	if err != nil {
		return accounts{}, fmt.Errorf("read %s of the image: %w", name, err)
	}
	return a, nil
}

// bindUsers lets users of the host log in: a record, and their home directory.
func (o *outer) bindUsers() error {
	if len(o.plan.BindUsers) == 0 {
		return nil
	}
	users, err := o.imageAccounts("/etc/passwd")
	if err != nil {
		return err
	}
	groups, err := o.imageAccounts("/etc/group")
	if err != nil {
		return err
	}
	o.asMachineRoot()
	err = errors.Join(o.root.mkdir(userHome, 0o755), o.root.mkdir(userDB, 0o755))
	o.asHost()
	if err != nil {
		return fmt.Errorf("bind users: %w", err)
	}
	next := uint32(mapUIDMin)
	for i := range o.plan.BindUsers {
		u := &o.plan.BindUsers[i]
		id, err := o.pickID(u, users, groups, next)
		if err != nil {
			return err
		}
		next = id + 1
		if err := o.writeUser(u, id); err != nil {
			return fmt.Errorf("write record of user %q: %w", u.Name, err)
		}
		if err := o.bindHome(u, id); err != nil {
			return fmt.Errorf("bind home of user %q: %w", u.Name, err)
		}
	}
	return nil
}

// pickID finds an ID that is free in the image, both as user and as group.
func (o *outer) pickID(u *BindUser, users, groups accounts, next uint32) (uint32, error) {
	if users.names[u.Name] {
		return 0, fmt.Errorf("Sorry, the user '%s' already exists in the container.", u.Name)
	}
	if groups.names[u.Name] {
		return 0, fmt.Errorf("Sorry, the group '%s' already exists in the container.", u.Name)
	}
	for id := next; id <= mapUIDMax; id++ {
		if o.plan.Userns != nil && id >= o.plan.Userns.Count {
			break
		}
		if !users.ids[uint64(id)] && !groups.ids[uint64(id)] {
			return id, nil
		}
	}
	return 0, fmt.Errorf("No suitable available UID in range %d…%d in container detected, can't map user.", mapUIDMin, mapUIDMax)
}

// Records of nss-systemd(8), in the order of their keys in stock's.
type (
	userRecord struct {
		UserName      string `json:"userName"`
		UID           uint32 `json:"uid"`
		GID           uint32 `json:"gid"`
		HomeDirectory string `json:"homeDirectory"`
		Shell         string `json:"shell,omitempty"`
		Service       string `json:"service"`
	}
	groupRecord struct {
		GroupName string `json:"groupName"`
		GID       uint32 `json:"gid"`
		Service   string `json:"service"`
	}
	membership struct {
		UserName  string `json:"userName"`
		GroupName string `json:"groupName"`
		Service   string `json:"service"`
	}
	secretRecord struct {
		Privileged struct {
			HashedPassword    []string `json:"hashedPassword,omitempty"`
			SSHAuthorizedKeys []string `json:"sshAuthorizedKeys,omitempty"`
		} `json:"privileged"`
	}
)

const recordService = "io.systemd.NSpawn"

// recordFile is one file of userDB; a link where it has a target.
type recordFile struct {
	name, target string
	data         []byte
	mode         uint32
}

// records are the files that describe a user who has the ID inside.
func records(u *BindUser, id uint32) ([]recordFile, error) {
	var out []recordFile
	number := strconv.FormatUint(uint64(id), 10)
	add := func(base, suffix string, mode uint32, record any) error {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false) // as stock writes it
		if err := e.Encode(record); err != nil {
			return err
		}
		out = append(out, recordFile{name: base + suffix, data: b.Bytes(), mode: mode})
		if base == u.Name {
			out = append(out, recordFile{name: number + suffix, target: base + suffix})
		}
		return nil
	}
	secret := func(suffix string, passwords, keys []string) error {
		if len(passwords)+len(keys) == 0 {
			return nil
		}
		var r secretRecord
		r.Privileged.HashedPassword, r.Privileged.SSHAuthorizedKeys = passwords, keys
		return add(u.Name, suffix, 0o600, r)
	}
	err := errors.Join(
		add(u.Name, ".user", 0o644, userRecord{u.Name, id, id, userHome + u.Name, u.Shell, recordService}),
		secret(".user-privileged", u.Passwords, u.SSHKeys),
		add(u.Name, ".group", 0o644, groupRecord{u.Name, id, recordService}),
		secret(".group-privileged", u.GroupPasswords, nil))
	for _, g := range u.Groups {
		err = errors.Join(err, add(u.Name+":"+g, ".membership", 0o644, membership{u.Name, g, recordService}))
	}
	return out, err
}

func (o *outer) writeUser(u *BindUser, id uint32) error {
	files, err := records(u, id)
	if err != nil {
		return err
	}
	o.asMachineRoot()
	defer o.asHost()
	for _, f := range files {
		if f.target != "" {
			err = o.root.symlink(f.target, userDB+f.name)
		} else {
			err = o.root.write(userDB+f.name, f.data, f.mode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bindHome shows the user's home directory, with the user as its owner: by the
// mount's own map of owners where its file system can, else by a line in the
// user namespace's.
func (o *outer) bindHome(u *BindUser, id uint32) error {
	o.asMachineRoot()
	target, err := o.root.dir(userHome+u.Name, 0o755)
	o.asHost()
	if err != nil {
		return err
	}
	defer unix.Close(target)
	src, err := unix.Open(u.Home, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: u.Home, Err: err}
	}
	defer unix.Close(src)
	m, err := cloneTree(src, true)
	if err != nil {
		return err
	}
	defer unix.Close(m)
	base, count := o.base, uint32(math.MaxUint32)
	if o.plan.Userns != nil {
		count = o.plan.Userns.Count
	}
	fd, err := usernsFDs(homeMap(u.UID, id, base, count), homeMap(u.GID, id, base, count))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = setAttr(m, true, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(fd)})
	switch {
	case err == nil:
	case !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM):
		return fmt.Errorf("map ownership: %w", err)
	case o.plan.Userns == nil:
		return fmt.Errorf("the file system of %s can't map owners (%w): --bind-user= requires --private-users= here", u.Home, err)
	default:
		o.plan.Userns.Users = append(o.plan.Userns.Users, UserMapping{Inside: id, HostUID: u.UID, HostGID: u.GID})
	}
	return attach(m, target)
}

// homeMap shows the host's ID as the machine's, and leaves alone what else belongs
// to the machine: its root may write there, as in any directory that is bound.
func homeMap(host, inside, base, count uint32) []Mapping {
	out := []Mapping{{host, base + inside, 1}}
	for _, r := range [][2]uint32{{0, inside}, {inside + 1, count}} {
		first, end := uint64(base)+uint64(r[0]), uint64(base)+uint64(r[1])
		// What is the host's own ID on disk is taken.
		if h := uint64(host); h >= first && h < end {
			if h > first {
				out = append(out, Mapping{uint32(first), uint32(first), uint32(h - first)})
			}
			first = h + 1
		}
		if end > first {
			out = append(out, Mapping{uint32(first), uint32(first), uint32(end - first)})
		}
	}
	return out
}
