package mapped

import (
	"errors"
	"strings"
	"testing"

	"machined/internal/nsexec"
	"machined/registry"
)

type table []registry.Machine

func (t table) Get(name string) (registry.Machine, error) {
	for _, m := range t {
		if m.Name == name {
			return m, nil
		}
	}
	return registry.Machine{}, errors.New("no such machine")
}
func (t table) List() []registry.Machine { return t }

func directory() *Directory {
	maps := map[int]string{
		10: "0 524288 65536\n",
		11: "0 0 4294967295\n",
		12: "0 700000 1000\n5000 800000 1\n",
		13: "0 900000 65536\n",
	}
	return &Directory{
		Machines: table{
			{Name: ".host", Class: registry.ClassHost, Leader: registry.Process{PID: 1}},
			{Name: "deb", Class: registry.ClassContainer, Leader: registry.Process{PID: 10}},
			{Name: "plain", Class: registry.ClassContainer, Leader: registry.Process{PID: 11}},
			{Name: "two-part", Class: registry.ClassContainer, Leader: registry.Process{PID: 12}},
			{Name: "qemu", Class: registry.ClassVM, Leader: registry.Process{PID: 13}},
		},
		ReadMap: func(p registry.Process, _ Kind) (nsexec.IDMap, error) {
			return nsexec.ParseIDMap(strings.NewReader(maps[p.PID]))
		},
	}
}

func TestByIDAndName(t *testing.T) {
	tests := []struct {
		id   uint32
		want string // empty: not found
	}{
		{524288, "vu-deb-0"},
		{524288 + 1000, "vu-deb-1000"},
		{524288 + 65534, "vu-deb-65534"},
		{524288 + 65535, ""}, // no one's
		{524288 + 65536, ""},
		{800000, "vu-two-part-5000"},
		{701000, ""},
		{900000, ""}, // a vm
		{70000, ""},  // "plain" maps everything onto itself
		{1000, ""},
		{4294967295, ""},
	}
	d := directory()
	for _, tt := range tests {
		e, err := d.ByID(User, tt.id)
		if tt.want == "" {
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("id %d: got %v, %v; want not found", tt.id, e, err)
			}
			continue
		}
		if err != nil || e.Name != tt.want {
			t.Errorf("id %d: got %q, %v; want %q", tt.id, e.Name, err, tt.want)
			continue
		}
		back, err := d.ByName(User, e.Name)
		if err != nil || back != e {
			t.Errorf("name %q: got %+v, %v; want %+v", e.Name, back, err, e)
		}
	}
}

func TestByNameRefuses(t *testing.T) {
	d := directory()
	for _, name := range []string{"", "vu-", "vu-deb", "vu-deb-", "vu--0", "vg-deb-0", "vu-deb-00", "vu-deb-+1",
		"vu-deb-65535", "vu-deb-65536", "vu-nope-0", "vu-qemu-0", "vu-.host-0", "vu-plain-70", "vu-deb-4294967295", "vu-deb-99999999999"} {
		if e, err := d.ByName(User, name); !errors.Is(err, ErrNotFound) {
			t.Errorf("name %q: got %+v, %v; want not found", name, e, err)
		}
	}
}

func FuzzParseName(f *testing.F) {
	f.Add("vu-deb-0")
	f.Add("vu-a-b-4294967294")
	f.Fuzz(func(t *testing.T, name string) {
		if machine, inner, ok := ParseName(User, name); ok && entry(User, machine, 0, inner).Name != name {
			t.Errorf("%q does not round-trip", name)
		}
	})
}
