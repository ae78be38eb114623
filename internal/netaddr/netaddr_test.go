package netaddr

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatal("needs root for a network namespace")
	}
	t.Skip("needs root for a network namespace")
}

func namespaced(t testing.TB) int {
	t.Helper()
	needRoot(t)
	cmd := exec.Command("unshare", "--net", "--kill-child", "sh", "-c",
		"ip link add host0 type veth peer name other && ip addr add 10.7.7.2/24 dev host0 &&"+
			" ip -6 addr add fd77::2/64 dev host0 nodad && ip -6 addr add fe80::77/64 dev host0 nodad &&"+
			" ip link set lo up && ip link set other up && ip link set host0 up && echo ready && exec cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	if n, _ := out.Read(make([]byte, 16)); n != 6 {
		t.Fatal("namespace is not ready")
	}
	return cmd.Process.Pid
}

func TestAddresses(t *testing.T) {
	pid := namespaced(t)
	var c Cache
	defer c.Close()
	for range 3 {
		list, err := c.Addresses(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		got := map[netip.Addr]bool{}
		for _, a := range list {
			got[a.IP] = true
		}
		for _, want := range []string{"10.7.7.2", "fd77::2", "fe80::77"} {
			if !got[netip.MustParseAddr(want)] {
				t.Errorf("addresses %v lack %s", list, want)
			}
		}
		if got[netip.MustParseAddr("127.0.0.1")] || !list[0].IP.Is4() {
			t.Errorf("got %v, want no loopback and IPv4 first", list)
		}
	}
	if len(c.entries) != 1 {
		t.Errorf("got %d sockets for one process, want 1", len(c.entries))
	}
	c.Forget(pid, 0)
	if len(c.entries) != 0 {
		t.Error("socket is kept after Forget")
	}
	if _, err := c.Addresses(pid, 1); !errors.Is(err, unix.ESRCH) {
		t.Errorf("another process's pidfd: got %v, want ESRCH", err)
	}
}

// TestManyAddresses has a namespace give itself more addresses than anybody
// wants to hear of; the next question is answered from a fresh socket.
func TestManyAddresses(t *testing.T) {
	pid := namespaced(t)
	var batch strings.Builder
	for i := range maxAddresses + 100 {
		fmt.Fprintf(&batch, "addr add 10.8.%d.%d/8 dev host0\n", i>>8, i&255)
	}
	cmd := exec.Command("nsenter", "--net=/proc/"+strconv.Itoa(pid)+"/ns/net", "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(batch.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var c Cache
	defer c.Close()
	for range 3 {
		list, err := c.Addresses(pid, 0)
		if err != nil || len(list) != maxAddresses {
			t.Fatalf("got %d addresses, %v; want %d", len(list), err, maxAddresses)
		}
	}
	if len(c.entries) != 0 {
		t.Error("a socket with the rest of a dump is kept")
	}
}

func TestSharedNamespace(t *testing.T) {
	needRoot(t)
	var c Cache
	defer c.Close()
	if _, err := c.Addresses(os.Getpid(), 0); !errors.Is(err, ErrSharedNamespace) {
		t.Errorf("got %v, want %v", err, ErrSharedNamespace)
	}
	if _, err := c.Addresses(1<<22+5, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("no process: got %v, want ESRCH", err)
	}
}

func TestHostMatchesNetPackage(t *testing.T) {
	list, err := Host()
	if err != nil {
		t.Fatal(err)
	}
	known := map[netip.Addr]bool{}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			ip, _ := netip.AddrFromSlice(n.IP)
			known[ip.Unmap()] = true
		}
	}
	for _, a := range list {
		if !known[a.IP] {
			t.Errorf("%v is no address of this host", a)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 3, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, data []byte) {
		var list []Address
		_, _, _ = parse(data, 1, &list)
		for _, a := range list {
			if !a.IP.IsValid() {
				panic("invalid address")
			}
		}
	})
}

func BenchmarkAddresses(b *testing.B) {
	pid := namespaced(b)
	var c Cache
	defer c.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Addresses(pid, 0); err != nil {
			b.Fatal(err)
		}
	}
}
