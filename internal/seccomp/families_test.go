package seccomp

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestFamilies(t *testing.T) {
	t.Parallel()
	type step struct {
		words []string
		deny  bool
	}
	for _, tt := range []struct {
		name                        string
		steps                       []step
		unix, inet, netlink, packet string
	}{
		{"one", []step{{[]string{"AF_UNIX"}, false}}, "allow", "EAFNOSUPPORT", "EAFNOSUPPORT", "EAFNOSUPPORT"},
		{"combined", []step{{[]string{"AF_UNIX", "AF_LOCAL"}, false}, {[]string{"AF_INET"}, false}}, "allow", "allow", "EAFNOSUPPORT", "EAFNOSUPPORT"},
		{"denied", []step{{[]string{"AF_PACKET", "AF_NETLINK"}, true}}, "allow", "allow", "EAFNOSUPPORT", "EAFNOSUPPORT"},
		{"both", []step{{[]string{"AF_UNIX", "AF_INET"}, false}, {[]string{"AF_INET"}, true}}, "allow", "EAFNOSUPPORT", "EAFNOSUPPORT", "EAFNOSUPPORT"},
		{"none", []step{{[]string{"AF_UNIX"}, false}, {[]string{"none"}, false}}, "EAFNOSUPPORT", "EAFNOSUPPORT", "EAFNOSUPPORT", "EAFNOSUPPORT"},
		{"taken back", []step{{[]string{"none"}, false}, {nil, false}}, "allow", "allow", "allow", "allow"},
	} {
		var f Families
		for _, s := range tt.steps {
			if err := f.ParseFamilies(s.words, s.deny); err != nil {
				t.Fatal(err)
			}
		}
		if f.Restricts() != (tt.name != "taken back") {
			t.Errorf("%s: Restricts %v", tt.name, f.Restricts())
		}
		m := interpret(t, CompileFamilies(f))
		for family, want := range map[uint32]string{unix.AF_UNIX: tt.unix, unix.AF_INET: tt.inet, unix.AF_NETLINK: tt.netlink, unix.AF_PACKET: tt.packet} {
			if got := m.call("socket", family, unix.SOCK_STREAM, 0); got != want {
				t.Errorf("%s: socket of family %d: got %s, want %s", tt.name, family, got, want)
			}
		}
		if got := m.call("read"); got != "allow" {
			t.Errorf("%s: read: got %s", tt.name, got)
		}
		for _, a := range abis {
			for _, c := range a.calls {
				if got := m.run(a.audit, c.nr); c.name == "socketcall" && got != "ENOSYS" {
					t.Errorf("%s: socketcall: got %s", tt.name, got)
				}
			}
		}
	}
	var f Families
	if err := f.ParseFamilies([]string{"AF_FOO"}, false); err == nil {
		t.Error("took a family that there is not")
	}
}
