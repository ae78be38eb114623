package caps

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in      string
		want    uint64
		unknown bool
	}{
		{"", 0, false},
		{"CAP_CHOWN", 1, false},
		{"cap_chown,CAP_Kill", 1 | 1<<5, false},
		{" CAP_NET_ADMIN  CAP_SYS_TIME ", 1<<12 | 1<<25, false},
		{"21", 1 << 21, false},
		{"all", All(), false},
		{"all,62", All() | 1<<62, false},
		{"chown", 0, true},
		{"63", 0, true},
		{"ALL", 0, true},
		{"-1", 0, true},
		{"CAP_CHOWN,foo", 0, true},
	} {
		got, err := Parse(tt.in)
		if got != tt.want || errors.Is(err, ErrUnknown) != tt.unknown {
			t.Errorf("Parse(%q) = %#x, %v; want %#x, unknown %v", tt.in, got, err, tt.want, tt.unknown)
		}
	}
}

func TestDefault(t *testing.T) {
	t.Parallel()
	if got := Default(true) &^ Default(false); got != Bit(unix.CAP_NET_ADMIN) {
		t.Errorf("private network adds %s", Format(got))
	}
	if got, want := Default(false), uint64(0xfdecafff)&^Bit(unix.CAP_NET_ADMIN); got != want {
		t.Errorf("default is %#x, want %#x", got, want) // CapBnd of a stock machine
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for n, name := range Names() {
		if got, err := Parse(strings.ToUpper(name)); err != nil || got != Bit(n) {
			t.Errorf("%s: got %#x, %v", name, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"all", "CAP_CHOWN,1", "x y", ",,,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		mask, err := Parse(s)
		if err != nil {
			return
		}
		if again, err := Parse(Format(mask)); err != nil || again != mask {
			t.Fatalf("%q: %#x does not round-trip: %#x, %v", s, mask, again, err)
		}
	})
}

// TestApply gives up capabilities on a thread of its own, which then ends.
func TestApply(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	type sets struct{ eff, inh, perm, amb, bnd uint64 }
	done := make(chan error, 1)
	var got sets
	bnd := Bit(unix.CAP_CHOWN) | Bit(unix.CAP_KILL) | Bit(unix.CAP_SETPCAP)
	amb := Bit(unix.CAP_KILL)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		err := Apply(bnd, amb, amb, amb, amb)
		if err == nil {
			got.eff, got.inh, got.perm, err = Get()
		}
		for n := range Last() + 1 {
			if v, _ := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n), 0, 0, 0); v == 1 {
				got.bnd |= Bit(n)
			}
			if v, _ := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, uintptr(n), 0, 0); v == 1 {
				got.amb |= Bit(n)
			}
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if want := (sets{amb, amb, amb, amb, bnd}); got != want {
		t.Errorf("got %+x, want %+x", got, want)
	}
}
