package spawn

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"machined/internal/userdb"
	"machined/spawn/settings"
	"machined/spawn/stage"
)

func TestBindUser(t *testing.T) {
	etc, home := t.TempDir(), t.TempDir()
	file := filepath.Join(home, "file")
	for name, text := range map[string]string{
		filepath.Join(etc, "passwd"): "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\njoe:x:1000:1000::" + home + ":/bin/zsh\n" +
			"shared:x:1001:100::" + home + ":/bin/sh\nnohome:x:1002:1002::" + home + "/none:/bin/sh\nafile:x:1003:1003::" + file + ":/bin/sh\n" +
			"nogroup:x:1004:1999::" + home + ":/bin/sh\ngid:x:1005:70000::" + home + ":/bin/sh\ntoor:x:0:0::/root:/bin/sh\n",
		filepath.Join(etc, "group"):  "joe:x:1000:\nusers:x:100:\nnohome:x:1002:\nafile:x:1003:\ngid:x:70000:\n",
		filepath.Join(etc, "shadow"): "joe:$y$hash:::::::\n",
		file:                         "",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ns := &stage.Userns{Base: 65536, Count: 65536}
	for _, c := range []struct {
		name  string
		shell settings.BindUserShell
		ns    *stage.Userns
		err   string // part of the message
		want  string // shell
	}{
		{"joe", settings.BindUserShell{}, ns, "", ""},
		{"joe", settings.BindUserShell{Copy: true}, nil, "", "/bin/zsh"},
		{"joe", settings.BindUserShell{Path: "/bin/sh"}, ns, "", "/bin/sh"},
		{"joe", settings.BindUserShell{}, &stage.Userns{Count: 65536}, "UID of user 'joe' to map is already in container UID range", ""},
		{"gid", settings.BindUserShell{}, ns, "GID of group 'gid' to map is already in container GID range", ""},
		{"root", settings.BindUserShell{}, ns, "Mapping 'root' user not supported", ""},
		{"toor", settings.BindUserShell{}, ns, "Mapping 'root' user not supported", ""},
		{"nobody", settings.BindUserShell{}, ns, "Mapping 'nobody' user not supported", ""},
		{"nosuch", settings.BindUserShell{}, ns, "Failed to resolve user 'nosuch'", ""},
		{"shared", settings.BindUserShell{}, ns, "without private groups", ""},
		{"nogroup", settings.BindUserShell{}, ns, "Failed to resolve group of user 'nogroup'", ""},
		{"nohome", settings.BindUserShell{}, ns, "Failed to stat " + home + "/none", ""},
		{"afile", settings.BindUserShell{}, ns, "is not a directory", ""},
	} {
		u, err := bindUser(userdb.DB{Etc: etc}, c.name, c.shell, c.ns)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: got %v, want %q", c.name, err, c.err)
			}
		case err != nil || u.Shell != c.want || u.UID != 1000 || u.Home != home || len(u.Passwords) != 1:
			t.Errorf("%s: got %+v, %v", c.name, u, err)
		}
	}
}

func TestBindUsersOnce(t *testing.T) {
	etc, home := t.TempDir(), t.TempDir()
	_ = os.WriteFile(filepath.Join(etc, "passwd"), []byte("joe:x:1000:1000::"+home+":\n"), 0o600)
	_ = os.WriteFile(filepath.Join(etc, "group"), []byte("joe:x:1000:\n"), 0o600)
	o := Default()
	o.BindUsers, o.BindUserGroups = []string{"joe", "joe"}, []string{"wheel", "adm", "wheel"}
	m := &machine{opts: &o}
	if err := m.planBindUsers(userdb.DB{Etc: etc}); err != nil {
		t.Fatal(err)
	}
	if u := m.plan.BindUsers; len(u) != 1 || strings.Join(u[0].Groups, " ") != "adm wheel" {
		t.Errorf("got %+v", u)
	}
}
