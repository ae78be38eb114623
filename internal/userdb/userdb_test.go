package userdb

import (
	"bufio"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func etc(t *testing.T) string {
	dir := t.TempDir()
	write(t, dir, "passwd", "root:x:0:0:root:/root:/bin/sh\nbroken\njoe:x:1000:1001:Joe,,,:/home/joe:/bin/bash\nodd:x:notanumber:1:::\nlong:x:4294967295:1:::\n")
	write(t, dir, "group", "root:x:0:\njoe:x:1001:a,b,c\nsecret:x:1002:\n")
	write(t, dir, "shadow", "joe:$y$j9T$hash:19000:0:99999:7:::\nroot:*:1:0:99999:7:::\n")
	write(t, dir, "gshadow", "joe:!::\nsecret:$6$hash::\n")
	return dir
}

func TestFiles(t *testing.T) {
	db := DB{Etc: etc(t), Getent: func(database, key string) string {
		return map[string]string{
			"passwd net": "net:*:2000:2000::/net:/bin/zsh", "group 2000": "net:x:2000:", "shadow net": "net:!:::::::",
		}[database+" "+key]
	}}
	users := []struct {
		name string
		want User
		ok   bool
	}{
		{"joe", User{Name: "joe", UID: 1000, GID: 1001, Home: "/home/joe", Shell: "/bin/bash", Passwords: []string{"$y$j9T$hash"}}, true},
		{"root", User{Name: "root", Home: "/root", Shell: "/bin/sh"}, true},
		{"net", User{Name: "net", UID: 2000, GID: 2000, Home: "/net", Shell: "/bin/zsh", Passwords: []string{"!"}}, true},
		{"odd", User{}, false},
		{"long", User{}, false},
		{"nosuch", User{}, false},
		{"../joe", User{}, false},
	}
	for _, c := range users {
		got, err := db.User(c.name)
		if (err == nil) != c.ok || (err != nil) != errors.Is(err, ErrNotFound) || !reflect.DeepEqual(got, c.want) {
			t.Errorf("User(%q): got %+v, %v; want %+v, %v", c.name, got, err, c.want, c.ok)
		}
	}
	groups := []struct {
		gid  uint32
		want Group
		ok   bool
	}{
		{1001, Group{Name: "joe", GID: 1001}, true},
		{1002, Group{Name: "secret", GID: 1002, Passwords: []string{"$6$hash"}}, true},
		{2000, Group{Name: "net", GID: 2000}, true},
		{3000, Group{}, false},
	}
	for _, c := range groups {
		got, err := db.Group(c.gid)
		if (err == nil) != c.ok || !reflect.DeepEqual(got, c.want) {
			t.Errorf("Group(%d): got %+v, %v; want %+v, %v", c.gid, got, err, c.want, c.ok)
		}
	}
}

func TestDropIns(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "home.user", `{"userName":"home","uid":60100,"gid":60100,"shell":"/bin/fish","extra":{"x":[1]}}`)
	write(t, dir, "home.user-privileged", `{"privileged":{"hashedPassword":["$y$a","$y$b"],"sshAuthorizedKeys":["ssh-ed25519 AAAA me"]}}`)
	write(t, dir, "60100.group", `{"groupName":"home","gid":60100}`)
	write(t, dir, "other.user", `{"userName":"somebody","uid":1}`)
	write(t, dir, "bad.user", `{"userName":"bad","uid":-1}`)
	db := DB{Etc: t.TempDir(), DropIns: []string{t.TempDir(), dir}}
	want := User{
		Name: "home", UID: 60100, GID: 60100, Home: "/home/home", Shell: "/bin/fish",
		Passwords: []string{"$y$a", "$y$b"}, SSHKeys: []string{"ssh-ed25519 AAAA me"},
	}
	if got, err := db.User("home"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if got, err := db.Group(60100); err != nil || got.Name != "home" {
		t.Errorf("group: got %+v, %v", got, err)
	}
	for _, name := range []string{"other", "bad"} {
		if got, err := db.User(name); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}

func TestMultiplexer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			raw, _ := bufio.NewReader(conn).ReadBytes(0)
			var call struct {
				Method     string
				Parameters struct{ UserName, Service string }
			}
			answer := `{"error":"io.systemd.UserDatabase.NoRecordFound"}`
			if json.Unmarshal(raw[:len(raw)-1], &call) == nil && call.Method == "io.systemd.UserDatabase.GetUserRecord" && call.Parameters.UserName == "homed" {
				answer = `{"parameters":{"record":{"userName":"homed","uid":60001,"privileged":{"sshAuthorizedKeys":["k"]}},"incomplete":false}}`
			}
			_, _ = conn.Write(append([]byte(answer), 0))
			_ = conn.Close()
		}
	}()
	db := DB{Etc: etc(t), Socket: socket}
	if got, err := db.User("homed"); err != nil || got.UID != 60001 || got.GID != 60001 || len(got.SSHKeys) != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := db.User("joe"); err != nil || got.UID != 1000 {
		t.Errorf("what the service lacks, files have: got %+v, %v", got, err)
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"joe": true, "a.b-c_d": true, "Ünal": true, "user$": true, "": false, "-x": false, "a/b": false, "a:b": false,
		"a b": false, "a\nb": false, "123": false, ".": false, "..": false, "0x1": true, strings.Repeat("x", 257): false,
	} {
		if got := ValidName(name); got != want {
			t.Errorf("ValidName(%q): got %v, want %v", name, got, want)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"userName":"home","groupName":"g","uid":60100,"gid":1}`), []byte(`{"privileged":{"hashedPassword":["x"]}}`))
	f.Add([]byte(`{"parameters":{"record":{"userName":"homed","uid":60001}}}`), []byte(nil))
	f.Add([]byte("joe:x:1000:1001:Joe,,,:/home/joe:/bin/bash"), []byte("null"))
	f.Fuzz(func(t *testing.T, raw, secret []byte) {
		if u, err := parseUser(raw, secret); err == nil && (!ValidName(u.Name) || !validID(uint64(u.UID)) || !validID(uint64(u.GID)) || u.Home == "") {
			t.Errorf("accepted %+v", u)
		}
		if g, err := parseGroup(raw, secret); err == nil && (!ValidName(g.Name) || !validID(uint64(g.GID))) {
			t.Errorf("accepted %+v", g)
		}
		if u, err := passwdLine(string(raw)); err == nil && !ValidName(u.Name) {
			t.Errorf("accepted %+v", u)
		}
		parseReply(raw)
	})
}
