//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"machined/tests/host"
)

// raceRounds is how many calls each race makes on each host; RACE_ROUNDS is how many on
// all together, of which 10000 is the full measure.
func raceRounds(t *testing.T) int {
	t.Helper()
	text := os.Getenv("RACE_ROUNDS")
	if text == "" {
		return 200
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("RACE_ROUNDS: %q is no number of rounds", text)
	}
	return max(1, n/len(host.Suites))
}

// outside is a folder of the host that no machine has. Whatever touches it has
// left the machine.
const outside = "/outside"

const secret = "this is the host's"

// makeOutside fills the folder with what the races would find there.
func makeOutside(t *testing.T, h *host.Host) {
	t.Helper()
	h.Shell(t, `mkdir -p /outside/x/sub /outside/dbus /outside/pts /src/tree/sub /recv`)
	h.WriteFile(t, "/outside/x/data", secret, 0o644)
	h.WriteFile(t, "/outside/x/sub/data", secret, 0o644)
	h.WriteFile(t, "/outside/os-release", "ID=leak\n", 0o644)
	h.WriteFile(t, "/src/tree/data", "from the host", 0o644)
	h.WriteFile(t, "/src/tree/sub/data", "from the host", 0o644)
	h.Shell(t, `mount --bind /dev/pts /outside/pts`)
}

// listing tells all of the folder: names, kinds, owners, sizes, times of change.
func listing(t *testing.T, h *host.Host) string {
	t.Helper()
	return h.Shell(t, `find /outside -path /outside/pts -prune -o -printf '%p %y %m %U %G %s %T@ %C@\n' | sort; grep -c outside /proc/self/mountinfo`)
}

// swapper exchanges two names as fast as it can until the test ends.
type swapper struct {
	n    atomic.Int64
	stop chan struct{}
	done chan error
}

func swap(a, b string) *swapper {
	s := &swapper{stop: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		for {
			select {
			case <-s.stop:
				s.done <- nil
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
				s.done <- &os.LinkError{Op: "exchange", Old: a, New: b, Err: err}
				return
			}
			s.n.Add(1)
		}
	}()
	return s
}

func (s *swapper) end(t *testing.T) {
	t.Helper()
	close(s.stop)
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	t.Logf("%d swaps", s.n.Load())
}

// escapes are what a machine may plant in place of a folder of its own.
var escapes = []string{
	outside,
	"../../../../../../../.." + outside,
	"/proc/1/root" + outside,
	"/proc/self/root" + outside,
}

// TestHostileRaces swaps folders of a machine for links that lead out of it,
// while the daemon works on them.
func TestHostileRaces(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		makeOutside(t, h)
		// A bus of the host's that no machine may be mistaken for.
		l, err := listenIn(h.Path(outside + "/dbus/system_bus_socket"))
		if err == nil {
			err = os.Chmod(h.Path(outside+"/dbus/system_bus_socket"), 0o666) // shifted roots may ask it, too
		}
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				t.Error("the host's socket was asked")
				c.Close()
			}
		}()
		conn := h.Bus(t)
		for _, how := range []struct {
			name  string
			flags []string
		}{{"plain", nil}, {"shifted", []string{"-U"}}} {
			t.Run(how.name, func(t *testing.T) {
				tree := h.BusyboxTree(t, how.name)
				p := h.Start(t, append(append([]string{"systemd-nspawn", "-q", "-M", how.name}, how.flags...), "-D", tree, "sh", "-c", "trap exit TERM; while :; do sleep 1000 & wait $!; done")...)
				waitMachine(t, h, how.name)
				r := race{t: t, h: h, conn: conn, name: how.name, rounds: raceRounds(t)}
				r.root = h.Path(fmt.Sprintf("/proc/%d/root", r.leader()))
				r.tree = filepath.Join(h.Machines(), how.name)
				before := listing(t, h)
				for _, act := range []struct {
					name string
					run  func(t *testing.T, r race, escape string)
				}{
					{"bind", raceBind}, {"copy-to", raceCopyTo}, {"copy-from", raceCopyFrom},
					{"os-release", raceOSRelease}, {"shell", raceShell}, {"pty", racePTY},
				} {
					t.Run(act.name, func(t *testing.T) {
						r := r
						r.t, r.rounds = t, max(1, r.rounds/len(escapes))
						for _, escape := range escapes {
							act.run(t, r, escape)
						}
						if after := listing(t, h); after != before {
							t.Errorf("the host was changed:\n%s", linesOnlyIn(after, before)+linesOnlyIn(before, after))
							before = after
						}
					})
				}
				if !p.Running() {
					t.Errorf("the machine died: %s", p.Output())
				}
				h.MustRun(t, "machinectl", "terminate", how.name)
				waitGone(t, h)
			})
		}
	})
}

type race struct {
	t      *testing.T
	h      *host.Host
	conn   *godbus.Conn
	name   string
	root   string // of the machine, as this process sees it
	tree   string // what is mounted there: owners may be mapped, and root unknown
	rounds int
}

func (r race) leader() uint32 {
	r.t.Helper()
	var path godbus.ObjectPath
	if err := call(r.conn, "GetMachine", r.name).Store(&path); err != nil {
		r.t.Fatal(err)
	}
	v, err := r.conn.Object(busName, path).GetProperty(busName + ".Machine.Leader")
	if err != nil {
		r.t.Fatal(err)
	}
	return v.Value().(uint32)
}

// plant puts a folder with x/sub at name, and the link beside it. It returns
// the two paths to swap.
func (r race) plant(name, escape string) (a, b string) {
	r.t.Helper()
	a, b = filepath.Join(r.tree, name), filepath.Join(r.tree, name+".link")
	err := errors.Join(
		os.RemoveAll(a), os.RemoveAll(b), os.MkdirAll(filepath.Join(a, "x/sub"), 0o777),
		os.WriteFile(filepath.Join(a, "x/data"), []byte("the machine's"), 0o666),
		os.WriteFile(filepath.Join(a, "x/sub/data"), []byte("the machine's"), 0o666),
		os.Symlink(escape, b),
	)
	if err != nil {
		r.t.Fatal(err)
	}
	return a, b
}

// calls makes the rounds and counts those that went well: a race that never
// gets anywhere would show nothing.
func (r race) calls(least int, one func(i int) error) {
	r.t.Helper()
	good := 0
	var last error
	for i := range r.rounds {
		if err := one(i); err != nil {
			last = err
			name, text := errorName(err)
			if strings.Contains(name, "Timeout") || strings.Contains(name, "NoReply") || strings.Contains(name, "deadline") || strings.Contains(name, "Disconnected") {
				r.t.Fatalf("round %d: %s: %s", i, name, text)
			}
			continue
		}
		good++
	}
	r.t.Logf("%d of %d rounds went well; last error: %v", good, r.rounds, last)
	if good < least {
		r.t.Errorf("only %d of %d rounds went well: %v", good, r.rounds, last)
	}
}

func raceBind(t *testing.T, r race, escape string) {
	a, b := r.plant("swap", escape)
	s := swap(a, b)
	defer s.end(t)
	object := r.conn.Object(busName, godbus.ObjectPath(busPath+"/machine/"+r.name))
	least := 1
	if host.DefaultImpl() == host.Stock && r.name == "shifted" {
		least = 0
	}
	r.calls(least, func(i int) error {
		target := "/swap/x/target" + strconv.Itoa(i%7)
		err := call(r.conn, "BindMountMachine", r.name, "/src/tree", target, i%2 == 0, true).Err
		if err == nil && host.DefaultImpl() == host.Ours {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			_ = object.CallWithContext(ctx, "org.machined.Machine1.Unbind", 0, target).Err // it may not find it right now
		}
		return err
	})
}

func raceCopyTo(t *testing.T, r race, escape string) {
	a, b := r.plant("swap", escape)
	s := swap(a, b)
	inner, link := r.plant("deep/tree/sub", escape) // also below what is being copied
	s2 := swap(inner, link)
	defer s.end(t)
	defer s2.end(t)
	r.calls(1, func(i int) error {
		if i%2 == 1 {
			return call(r.conn, "CopyToMachineWithFlags", r.name, "/src/tree", "/deep/tree", uint64(1)).Err
		}
		return call(r.conn, "CopyToMachineWithFlags", r.name, "/src/tree", "/swap/x/copy"+strconv.Itoa(i%5), uint64(1)).Err
	})
}

func raceCopyFrom(t *testing.T, r race, escape string) {
	a, b := r.plant("swap", escape)
	s := swap(a, b)
	inner, link := r.plant("deep/tree/sub", escape)
	s2 := swap(inner, link)
	defer s.end(t)
	defer s2.end(t)
	recv := r.h.Path("/recv")
	r.calls(1, func(i int) error {
		from := "/swap/x"
		if i%2 == 1 {
			from = "/deep"
		}
		err := call(r.conn, "CopyFromMachine", r.name, from, "/recv/got").Err
		walked := filepath.WalkDir(recv, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			if strings.Contains(string(data), secret) {
				t.Errorf("round %d: %s holds the host's data", i, path)
			}
			return err
		})
		if walked != nil {
			t.Error(walked)
		}
		if err := os.RemoveAll(filepath.Join(recv, "got")); err != nil {
			t.Fatal(err)
		}
		return err
	})
}

func raceOSRelease(t *testing.T, r race, escape string) {
	a, b := filepath.Join(r.tree, "etc"), filepath.Join(r.tree, "etc.link")
	_ = os.Remove(b)
	if err := os.Symlink(escape, b); err != nil {
		t.Fatal(err)
	}
	s := swap(a, b)
	r.calls(1, func(i int) error {
		var fields map[string]string
		err := call(r.conn, "GetMachineOSRelease", r.name).Store(&fields)
		if fields["ID"] == "leak" || err == nil && fields["ID"] != "busybox" {
			t.Errorf("round %d: os-release is %v", i, fields)
		}
		return err
	})
	s.end(t)
	if st, err := os.Lstat(a); err == nil && st.Mode()&os.ModeSymlink != 0 {
		_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	}
}

// raceShell: the machine's bus is where the daemon asks for a shell; a socket of
// the host must not be asked.
func raceShell(t *testing.T, r race, escape string) {
	a, b := filepath.Join(r.root, "run/dbus"), filepath.Join(r.root, "run/dbus.link")
	_, _ = os.RemoveAll(a), os.RemoveAll(b)
	if err := errors.Join(os.Mkdir(a, 0o755), os.Symlink(escape+"/dbus", b)); err != nil {
		t.Fatal(err)
	}
	s := swap(a, b)
	defer s.end(t)
	r.calls(0, func(i int) error { // there is no bus in the machine, so all fail
		if i%2 == 1 {
			return call(r.conn, "OpenMachineLogin", r.name).Err
		}
		return call(r.conn, "OpenMachineShell", r.name, "root", "/bin/sh", []string{}, []string{}).Err
	})
}

// listenIn listens at a path that may be longer than a socket's address.
func listenIn(path string) (net.Listener, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))})
	if err == nil {
		l.SetUnlinkOnClose(false)
	}
	return l, err
}

// racePTY: a terminal must come from the machine's devpts, never the host's.
func racePTY(t *testing.T, r race, escape string) {
	a, b := filepath.Join(r.root, "dev/pts"), filepath.Join(r.root, "dev/pts.link")
	if st, err := os.Lstat(a); err == nil && st.IsDir() {
		// What the machine's root could do: a /dev of its own, with its devpts by way of a link.
		r.h.Shell(t, fmt.Sprintf(`nsenter -t %d -m -r -- /bin/busybox sh -ec 'mkdir -p /run/keep
mount --bind /dev/pts /run/keep; mount -t tmpfs tmpfs /dev; mkdir /dev/real; mount --bind /run/keep /dev/real'`, r.leader()))
	}
	_, _ = os.Remove(a), os.Remove(b) // either may be the link, after the last swaps
	if err := errors.Join(os.Symlink("real", a), os.Symlink(escape+"/pts", b)); err != nil {
		t.Fatal(err)
	}
	var hosts unix.Stat_t
	if err := unix.Stat(r.h.Path("/dev/pts"), &hosts); err != nil {
		t.Fatal(err)
	}
	s := swap(a, b)
	defer s.end(t)
	r.calls(1, func(i int) error { // as Bus passes no descriptors
		conn, err := godbus.Connect("unix:path=" + r.h.Path("/run/dbus/system_bus_socket"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		var fd godbus.UnixFD
		var path string
		if err := call(conn, "OpenMachinePTY", r.name).Store(&fd, &path); err != nil {
			return err
		}
		defer unix.Close(int(fd))
		var st unix.Stat_t
		if err := unix.Fstat(int(fd), &st); err != nil {
			t.Fatal(err)
		}
		if st.Dev == hosts.Dev {
			t.Errorf("round %d: terminal %s is the host's", i, path)
		}
		return nil
	})
}
