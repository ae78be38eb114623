//go:build integration

package integration

import (
	"context"
	"encoding/xml"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/tests/host"
)

// slowCall is how long a call may take. One that takes longer is made again,
// since the machine that runs the tests may have been busy.
const slowCall = time.Second

// fuzzRounds is how often each method is called with arguments of its types,
// and with others; FUZZ_ROUNDS sets it.
func fuzzRounds(t *testing.T) int {
	t.Helper()
	text := os.Getenv("FUZZ_ROUNDS")
	if text == "" {
		return 6
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("FUZZ_ROUNDS: %q is no number of rounds", text)
	}
	return n
}

type introspected struct {
	Interfaces []struct {
		Name    string `xml:"name,attr"`
		Methods []struct {
			Name string `xml:"name,attr"`
			Args []struct {
				Type      string `xml:"type,attr"`
				Direction string `xml:"direction,attr"`
			} `xml:"arg"`
		} `xml:"method"`
		Properties []struct {
			Name string `xml:"name,attr"`
		} `xml:"namedValue"`
	} `xml:"interface"`
}

type method struct {
	path      godbus.ObjectPath
	iface     string
	name      string
	signature []string
}

// methodsOf reads what an object says of itself.
func methodsOf(t *testing.T, conn *godbus.Conn, path godbus.ObjectPath) []method {
	t.Helper()
	var text string
	if err := conn.Object(busName, path).Call("org.freedesktop.DBus.Introspectable.Introspect", 0).Store(&text); err != nil {
		t.Fatalf("introspect %s: %v", path, err)
	}
	var node introspected
	if err := xml.Unmarshal([]byte(text), &node); err != nil {
		t.Fatalf("introspect %s: %v", path, err)
	}
	var out []method
	for _, i := range node.Interfaces {
		for _, m := range i.Methods {
			one := method{path: path, iface: i.Name, name: m.Name}
			for _, a := range m.Args {
				if a.Direction != "out" {
					one.signature = append(one.signature, a.Type)
				}
			}
			out = append(out, one)
		}
	}
	return out
}

// generator makes arguments. Paths that would copy the whole host are not in it.
type generator struct {
	*rand.Rand
	leader uint32
}

var fuzzStrings = []string{
	"", "bb", "bb", "bb", ".host", "nope", "../x", "..", "a\nb", "x y", "ü", "\x01", "-bb", "bb.", "_", strings.Repeat("a", 65),
	"/etc", "/etc/passwd", "/tmp/fuzz", "/tmp/../etc", "/tmp/fuzz/", "//etc", "etc/passwd", "/dev/null", "/nonexistent/x", "/proc/self/root",
	"container", "vm", "host", "all", "leader", "supervisor", "root", "nobody", "/bin/true", "hidden", "newimage", "A=b", "=",
	"org.freedesktop.machine1.Manager", "org.freedesktop.machine1.Machine", "Name", "PoolPath", "LogLevel", "State", "debug",
	"Id", "Service", "Class", "LeaderPIDFD", "LeaderPID", "RootDirectory", "NetworkInterfaces", "VSockCID", "Slice", "Properties",
}

func (g generator) text() string {
	if g.IntN(60) == 0 {
		return strings.Repeat("long", 1<<14) // what a socket takes at once: godbus does not write on
	}
	return fuzzStrings[g.IntN(len(fuzzStrings))]
}

func (g generator) number() uint64 {
	all := []uint64{0, 1, 2, 3, 9, 15, 64, 65, 1000, 65535, 65536, uint64(g.leader), math.MaxInt32, math.MaxUint32, math.MaxInt64, math.MaxUint64, g.Uint64()}
	return all[g.IntN(len(all))]
}

type namedValue struct {
	Name  string
	Value godbus.Variant
}

var fuzzTypes = []string{"s", "u", "t", "i", "x", "b", "y", "d", "o", "ay", "as", "ai", "a(sv)", "a{sv}", "v", "h", "(ss)", "aas"}

// of makes a value of a type.
func (g generator) of(t *testing.T, sig string) any {
	t.Helper()
	many := g.IntN(4)
	switch sig {
	case "s":
		return g.text()
	case "o":
		paths := []godbus.ObjectPath{"/", busPath, busPath + "/machine/bb", "/x"}
		return paths[g.IntN(len(paths))]
	case "u":
		return uint32(g.number())
	case "t":
		return g.number()
	case "i":
		return int32(g.number())
	case "x":
		return int64(g.number())
	case "y":
		return byte(g.number())
	case "d":
		return g.NormFloat64()
	case "b":
		return g.IntN(2) == 0
	case "h":
		return godbus.UnixFD(int(os.Stderr.Fd()))
	case "(ss)":
		return struct{ A, B string }{g.text(), g.text()}
	case "ay":
		return make([]byte, []int{0, 1, 15, 16, 17, 100000}[g.IntN(6)])
	case "ai":
		return []int32{int32(g.number()), 1, -1}[:many%4]
	case "as":
		return slices.Collect(func(yield func(string) bool) {
			for range many {
				if !yield(g.text()) {
					return
				}
			}
		})
	case "aas":
		return [][]string{{g.text()}, {}}[:many%3]
	case "v":
		return godbus.MakeVariant(g.of(t, fuzzTypes[g.IntN(10)]))
	case "a(sv)":
		out := []namedValue{}
		for range many {
			out = append(out, namedValue{g.text(), g.of(t, "v").(godbus.Variant)})
		}
		return out
	case "a{sv}":
		out := map[string]godbus.Variant{}
		for range many {
			out[g.text()] = g.of(t, "v").(godbus.Variant)
		}
		return out
	}
	t.Fatalf("no generator for type %q", sig)
	return nil
}

// args makes arguments of the method's types, or, if wrong, of others.
func (g generator) args(t *testing.T, m method, wrong bool) []any {
	t.Helper()
	types := slices.Clone(m.signature)
	if wrong {
		switch n := g.IntN(3); {
		case n == 0 || len(types) == 0:
			types = append(types, fuzzTypes[g.IntN(len(fuzzTypes))])
		case n == 1:
			types = types[:len(types)-1]
		default:
			types[g.IntN(len(types))] = fuzzTypes[g.IntN(len(fuzzTypes))]
		}
	}
	out := make([]any, len(types))
	for i, sig := range types {
		if out[i] = g.of(t, sig); out[i] == nil || sig == "as" && out[i].([]string) == nil {
			out[i] = []string{}
		}
	}
	return out
}

// knownError matches the names that an answer may have.
var knownError = regexp.MustCompile(`^org\.machined\.NoSuchSnapshot$|^(org\.freedesktop\.machine1\.(NoSuch(Machine|Image|UserMapping|GroupMapping)|NoMachineForPID|MachineExists|NoPrivateNetworking)|` +
	`org\.freedesktop\.systemd1\.\w+|System\.Error\.E[A-Z0-9]+|org\.freedesktop\.DBus\.Error\.(InvalidArgs|AccessDenied|NotSupported|LimitsExceeded|` +
	`UnknownMethod|UnknownObject|UnknownInterface|UnknownProperty|PropertyReadOnly|FileNotFound|FileExists|UnixProcessIdUnknown|BadAddress|IOError|InconsistentMessage|Failed))$`)

// fuzzedDaemon is what the daemon has, to be the same afterwards.
type fuzzedDaemon struct {
	pid      string
	fds, rss int
}

func daemonState(t *testing.T, h *host.Host) fuzzedDaemon {
	t.Helper()
	pid := h.DaemonPID(t)
	f := strings.Fields(h.Shell(t, fmt.Sprintf("ls /proc/%s/fd | wc -l; awk '/VmRSS/ {print $2}' /proc/%s/status", pid, pid)))
	fds, _ := strconv.Atoi(f[0])
	rss, _ := strconv.Atoi(f[1])
	return fuzzedDaemon{pid, fds, rss}
}

// TestBusFuzz calls every method that introspection names, of all kinds of
// objects, with arguments of the right types and of wrong ones.
func TestBusFuzz(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		var machine *host.Process
		ready := func() { // whatever a call did to the machine and its image
			if _, err := os.Stat(h.Path("/var/lib/machines/bb/bin/busybox")); err != nil {
				h.Try("sh", "-c", "machinectl terminate bb; chattr -R -i /var/lib/machines/bb; rm -rf /var/lib/machines/bb /var/lib/machines/newimage")
				h.BusyboxTree(t, "bb")
			}
			h.Try("chattr", "-i", "/var/lib/machines/bb")
			if slices.Contains(busMachines(t, h), "bb") {
				return
			}
			if machine != nil && machine.Running() {
				_ = machine.Signal(h, 9)
				machine.Wait(t)
			}
			h.Try("systemctl", "stop", "machine-bb.scope") // of a machine that was unregistered
			host.Eventually(t, 10*time.Second, func() error {
				if r := h.Try("systemctl", "is-active", "machine-bb.scope"); r.Exit == 0 {
					return fmt.Errorf("%v", r)
				}
				return nil
			})
			machine = h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "-D", "/var/lib/machines/bb", "sleep", "1000000")
			waitMachine(t, h, "bb")
		}
		ready()
		conn := h.Bus(t)
		var methods []method
		for _, path := range []godbus.ObjectPath{busPath, busPath + "/machine/bb", busPath + "/machine/_2ehost", busPath + "/machine/self", busPath + "/image/bb", "/org/freedesktop/LogControl1"} {
			if path == busPath+"/machine/self" { // of root, in no machine
				continue
			}
			methods = append(methods, methodsOf(t, conn, path)...)
		}
		if len(methods) < 100 {
			t.Fatalf("introspection names only %d methods", len(methods))
		}
		before := daemonState(t, h)
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d, %d methods", seed, len(methods))
		g := generator{Rand: rand.New(rand.NewPCG(seed, 1))}
		rounds := fuzzRounds(t)
		calls := 0
		for i, m := range methods {
			if m.iface == "org.freedesktop.DBus.Peer" && m.name == "Ping" && i > 20 {
				continue
			}
			outside, err := godbus.Connect("unix:path=" + h.Path("/run/dbus/system_bus_socket"))
			if err != nil {
				t.Fatal(err)
			}
			inside := h.Bus(t)
			for n := range 2 * rounds {
				args := g.args(t, m, n%2 == 1)
				conn := outside // which passes descriptors
				if n%4 >= 2 {
					conn = inside // which the daemon knows the process of
				}
				took, err := fuzzCall(conn, m, args)
				if took > slowCall {
					first := took
					if took, err = fuzzCall(outside, m, args); took > slowCall {
						t.Errorf("%s.%s %s took %v and %v: %v", m.iface, m.name, short(args), first, took, err)
					}
				}
				calls++
				if err != nil && strings.Contains(err.Error(), "unix fd passing") {
					continue // by way of socat
				}
				if err == nil {
					if n%2 == 1 && differs(m, args) {
						t.Errorf("%s.%s takes %s", m.iface, m.name, short(args))
					}
					continue
				}
				name, text := errorName(err)
				if strings.Contains(text, "internal error") || !knownError.MatchString(name) && err != godbus.ErrClosed && err.Error() != "EOF" {
					t.Errorf("%s.%s %s: %s: %s", m.iface, m.name, short(args), name, text)
				}
			}
			outside.Close()
			inside.Close()
			if m.iface == managerIf || strings.Contains(m.iface, "Machine") || strings.Contains(m.iface, "Image") {
				ready()
			}
			if pid := h.DaemonPID(t); pid != before.pid {
				t.Fatalf("%s.%s: the daemon died: it is process %s now, and was %s", m.iface, m.name, pid, before.pid)
			}
		}
		t.Logf("%d calls", calls)
		if log := h.Shell(t, "journalctl --no-pager -q -o cat -u systemd-machined.service | grep -E 'panic|internal error|goroutine' | head -n 20 || true"); log != "" && h.Impl == host.Ours {
			t.Errorf("the daemon complains: %s", log)
		}
		host.Eventually(t, 15*time.Second, func() error {
			after := daemonState(t, h)
			if after.fds > before.fds+4 {
				return fmt.Errorf("%d descriptors open, %d before:\n%s", after.fds, before.fds, h.Shell(t, "ls -l /proc/"+after.pid+"/fd"))
			}
			return nil
		})
		after := daemonState(t, h)
		t.Logf("descriptors %d, before %d; RSS %d KiB, before %d", after.fds, before.fds, after.rss, before.rss)
		if after.rss > before.rss+24<<10 {
			t.Errorf("the daemon has grown from %d to %d KiB", before.rss, after.rss)
		}
	})
}

func busMachines(t *testing.T, h *host.Host) []string {
	t.Helper()
	return strings.Fields(h.MustRun(t, "sh", "-c", "machinectl list --no-legend | awk '{print $1}'"))
}

// differs reports whether arguments have another signature than the method.
func differs(m method, args []any) bool {
	return godbus.SignatureOf(args...).String() != strings.Join(m.signature, "")
}

func fuzzCall(conn *godbus.Conn, m method, args []any) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	start := time.Now()
	call := conn.Object(busName, m.path).CallWithContext(ctx, m.iface+"."+m.name, 0, args...)
	for _, v := range call.Body {
		if fd, ok := v.(godbus.UnixFD); ok {
			os.NewFile(uintptr(fd), "reply").Close()
		}
	}
	return time.Since(start), call.Err
}

// short is arguments as a failure shows them.
func short(args []any) string {
	s := fmt.Sprintf("%q", args)
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return s
}
