package stage

import (
	"math"
	"reflect"
	"strings"
	"testing"
)

func TestMaps(t *testing.T) {
	for _, c := range []struct {
		name          string
		ns            Userns
		users, groups []Mapping
	}{
		{"plain", Userns{Base: 65536, Count: 65536}, []Mapping{{0, 65536, 65536}}, []Mapping{{0, 65536, 65536}}},
		{
			"two users, out of order",
			Userns{Base: 100000, Count: 65536, Users: []UserMapping{{60515, 1001, 2001}, {60514, 1000, 2000}}},
			[]Mapping{{0, 100000, 60514}, {60514, 1000, 1}, {60515, 1001, 1}, {60516, 160516, 5020}},
			[]Mapping{{0, 100000, 60514}, {60514, 2000, 1}, {60515, 2001, 1}, {60516, 160516, 5020}},
		},
		{
			"the first and the last", Userns{Base: 100, Count: 10, Users: []UserMapping{{0, 1, 2}, {9, 3, 4}}},
			[]Mapping{{0, 1, 1}, {1, 101, 8}, {9, 3, 1}}, []Mapping{{0, 2, 1}, {1, 101, 8}, {9, 4, 1}},
		},
	} {
		users, groups := c.ns.Maps()
		if !reflect.DeepEqual(users, c.users) || !reflect.DeepEqual(groups, c.groups) {
			t.Errorf("%s: got %v and %v, want %v and %v", c.name, users, groups, c.users, c.groups)
		}
	}
}

func TestHomeMap(t *testing.T) {
	for _, c := range []struct {
		host, inside, base, count uint32
		want                      []Mapping
	}{
		{1000, 60514, 131072, 65536, []Mapping{{1000, 191586, 1}, {131072, 131072, 60514}, {191587, 191587, 5021}}},
		{1000, 60514, 0, math.MaxUint32, []Mapping{{1000, 60514, 1}, {0, 0, 1000}, {1001, 1001, 59513}, {60515, 60515, math.MaxUint32 - 60515}}},
		{60515, 60514, 0, math.MaxUint32, []Mapping{{60515, 60514, 1}, {0, 0, 60514}, {60516, 60516, math.MaxUint32 - 60516}}},
		{60514, 60514, 0, math.MaxUint32, []Mapping{{60514, 60514, 1}, {0, 0, 60514}, {60515, 60515, math.MaxUint32 - 60515}}},
	} {
		got := homeMap(c.host, c.inside, c.base, c.count)
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("homeMap(%d, %d, %d, %d): got %v, want %v", c.host, c.inside, c.base, c.count, got, c.want)
		}
		distinct(t, got)
	}
}

// distinct fails when two lines share an ID, which the kernel refuses.
func distinct(t *testing.T, maps []Mapping) {
	t.Helper()
	overlap := func(a, b, na, nb uint32) bool {
		return uint64(a) < uint64(b)+uint64(nb) && uint64(b) < uint64(a)+uint64(na)
	}
	for i, a := range maps {
		for _, b := range maps[:i] {
			if a.Count == 0 || overlap(a.Inside, b.Inside, a.Count, b.Count) || overlap(a.Outside, b.Outside, a.Count, b.Count) {
				t.Errorf("%v and %v overlap", a, b)
			}
		}
	}
}

func TestRecords(t *testing.T) {
	files, err := records(&BindUser{
		Name: "joe", Shell: "/bin/<sh>", Passwords: []string{"$y$x"}, SSHKeys: []string{"ssh-ed25519 A"}, Groups: []string{"wheel"},
	}, 60514)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, f := range files {
		got.WriteString(f.name + " -> " + f.target + string(f.data))
		if f.target != "" {
			got.WriteByte('\n')
		}
	}
	want := `joe.user -> {"userName":"joe","uid":60514,"gid":60514,"homeDirectory":"/run/host/home/joe","shell":"/bin/<sh>","service":"io.systemd.NSpawn"}
60514.user -> joe.user
joe.user-privileged -> {"privileged":{"hashedPassword":["$y$x"],"sshAuthorizedKeys":["ssh-ed25519 A"]}}
60514.user-privileged -> joe.user-privileged
joe.group -> {"groupName":"joe","gid":60514,"service":"io.systemd.NSpawn"}
60514.group -> joe.group
joe:wheel.membership -> {"userName":"joe","groupName":"wheel","service":"io.systemd.NSpawn"}
`
	if got.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
	}
}

func TestPickID(t *testing.T) {
	passwd, _ := readAccounts(strings.NewReader("root:x:0:0::/:/bin/sh\nbob:x:60514:1:::\n#comment\n:\n"))
	group, _ := readAccounts(strings.NewReader("root:x:0:\nstaff:x:60515:\nann:x:5:\n"))
	for _, c := range []struct {
		name  string
		next  uint32
		count uint32
		want  uint32 // 0: refused
	}{
		{"joe", mapUIDMin, 65536, 60516},
		{"joe", 60517, 65536, 60517},
		{"joe", mapUIDMax + 1, 65536, 0},
		{"joe", mapUIDMin, 60516, 0},
		{"bob", mapUIDMin, 65536, 0},
		{"ann", mapUIDMin, 65536, 0},
	} {
		o := &outer{plan: &Plan{Userns: &Userns{Count: c.count}}}
		got, err := o.pickID(&BindUser{Name: c.name}, passwd, group, c.next)
		if got != c.want || (err == nil) != (c.want != 0) {
			t.Errorf("%+v: got %d, %v", c, got, err)
		}
	}
}

func FuzzAccounts(f *testing.F) {
	f.Add("root:x:0:0::/:/bin/sh\nbob:x:60514:1:::\n")
	f.Add("a:b:-1\n\n:::\x00")
	f.Fuzz(func(t *testing.T, text string) {
		a, err := readAccounts(strings.NewReader(text))
		if err != nil {
			return
		}
		for id := range a.ids {
			if id > math.MaxUint32 {
				t.Errorf("ID %d", id)
			}
		}
	})
}
