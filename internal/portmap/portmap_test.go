package portmap

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inNetns runs f on a thread in a network namespace of its own; the thread ends
// with it.
func inNetns(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func ruleset(t *testing.T) string {
	out, err := exec.Command("nft", "-y", "list", "ruleset").CombinedOutput() // -y: versions name priorities differently
	if err != nil {
		t.Errorf("nft: %v\n%s", err, out)
	}
	return string(out)
}

// TestLikeStock compares with what systemd-nspawn 257 makes.
func TestLikeStock(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs nft")
	}
	golden, err := os.ReadFile("testdata/stock-257.nft")
	if err != nil {
		t.Fatal(err)
	}
	inNetns(t, func() {
		ports := []Port{{"tcp", 8080, 80}, {"udp", 5353, 53}}
		a4, a6 := netip.MustParseAddr("10.9.9.2"), netip.MustParseAddr("fd00::2")
		for _, a := range []netip.Addr{a4, a6} {
			if err := Map(ports, a); err != nil {
				t.Error(err)
				return
			}
		}
		if got := ruleset(t); got != string(golden) {
			t.Errorf("got\n%s\nwant\n%s", got, golden)
		}
		if err := Map([]Port{{"tcp", 9, 9}, {"tcp", 8080, 81}}, netip.MustParseAddr("10.9.9.3")); !errors.Is(err, ErrPortTaken) {
			t.Errorf("taken port: %v", err)
		}
		for range 2 {
			for _, a := range []netip.Addr{a4, a6} {
				if err := Unmap(ports, a); err != nil {
					t.Error(err)
				}
			}
		}
		if got := ruleset(t); strings.Contains(got, "elements") || strings.Count(got, "dnat ip") != 4 {
			t.Errorf("after unmapping:\n%s", got)
		}
		if err := create(ipv4); err != nil { // again, over what is there
			t.Error(err)
		}
		if got := ruleset(t); strings.Count(got, "masquerade") != 2 {
			t.Errorf("made twice:\n%s", got)
		}
	})
}
