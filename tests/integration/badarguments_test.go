//go:build integration

package integration

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// badArguments calls each method that introspection names with each of its
// strings replaced by odd ones, and then registers odd processes. It prints a
// line for each answer.
const badArguments = `import dbus, os, signal, socket, subprocess, time, xml.etree.ElementTree as xml
bus = dbus.SystemBus()
NAME, BASE = "org.freedesktop.machine1", "/org/freedesktop/machine1"
plain = {"u": dbus.UInt32(4000000), "i": dbus.Int32(18), "t": dbus.UInt64(0), "b": dbus.Boolean(False), "y": dbus.Byte(1),
    "as": dbus.Array([], signature="s"), "ay": dbus.Array([], signature="y"), "ai": dbus.Array([dbus.Int32(-1)], signature="i"), "a(sv)": dbus.Array([], signature="(sv)")}
odd = {"10MB": "a" * (10 << 20), "3MB": "a" * (3 << 20), "newline": "a\nb", "slash": "a/b", "up": "../b", "relative/..": "/a/../b", "DEL": "a\x7f", "umlaut": "ü" * 30, "space": "a b", "dots": ".."}
def call(path, iface, member, signature, args):
    start = time.time()
    try:
        bus.call_blocking(NAME, path, iface, member, signature, args, timeout=20)
        answer = "OK"
    except dbus.DBusException as e:
        answer = e.get_dbus_name()
    return "%s %d" % (answer, (time.time() - start) * 1000)
for path, iface in ((BASE, NAME + ".Manager"), (BASE + "/machine/bb", NAME + ".Machine"), (BASE + "/image/spare", NAME + ".Image")):
    text = str(bus.call_blocking(NAME, path, "org.freedesktop.DBus.Introspectable", "Introspect", "", []))
    for i in xml.fromstring(text).findall("interface"):
        if i.get("name") != iface: continue
        for m in i.findall("method"):
            types = [a.get("type") for a in m.findall("arg") if a.get("direction") != "out"]
            for n, t in enumerate(types):
                if t != "s": continue
                for kind, value in odd.items():
                    if kind == "10MB" and "s" in types[:n] or kind == "3MB" and "s" in types[n + 1:]: continue # they take their time
                    if kind in ("umlaut", "space") and ("Image" in m.get("name") or iface.endswith(".Image")): continue # a file's name
                    args = ["nope" if u == "s" else plain[u] for u in types]
                    if types[0] == "s" and n > 0 and iface.endswith(".Manager") and "Image" not in m.get("name"): args[0] = "bb"
                    args[n] = value
                    print(m.get("name"), n, kind, call(path, iface, m.get("name"), "".join(types), args))
def register(what, **properties):
    args = ["odd", dbus.Array([(k, v) for k, v in {"Class": "container", **properties}.items()], signature="(sv)")]
    print("RegisterMachineEx", 1, what, call(BASE, NAME + ".Manager", "RegisterMachineEx", "sa(sv)", args))
null, sockets = os.open("/dev/null", os.O_RDONLY), socket.socketpair()
dead = subprocess.Popen(["true"]); pidfd = os.pidfd_open(dead.pid); dead.wait()
alive = subprocess.Popen(["sleep", "1000"])
register("fd:null", LeaderPIDFD=dbus.types.UnixFd(null))
register("fd:socket", LeaderPIDFD=dbus.types.UnixFd(sockets[0].fileno()))
register("fd:directory", LeaderPIDFD=dbus.types.UnixFd(os.open("/", os.O_RDONLY)))
register("fd:dead", LeaderPIDFD=dbus.types.UnixFd(pidfd))
register("fd:init", LeaderPIDFD=dbus.types.UnixFd(os.pidfd_open(1)))
register("pid:alone", LeaderPID=dbus.UInt32(alive.pid))
register("pid:reused", LeaderPID=dbus.UInt32(alive.pid), LeaderPIDFDID=dbus.UInt64(1))
register("pid:differ", LeaderPID=dbus.UInt32(os.getpid()), LeaderPIDFD=dbus.types.UnixFd(os.pidfd_open(alive.pid)), LeaderPIDFDID=dbus.UInt64(1))
register("type:Id", Id="abc")
register("type:Class", Class=dbus.UInt32(1))
register("type:netif", NetworkInterfaces=dbus.Array([dbus.Int32(-5)], signature="i"))
register("key", Nope=dbus.UInt32(1))
alive.kill()
`

// badAllowed are calls that are odd and yet right.
var badAllowed = regexp.MustCompile(`^(UnregisterMachine|GetMachineByPID) `)

// TestBadArguments: whatever the strings, descriptors and processes are, the
// answer is an error with a known name, soon, and the daemon stays as it was.
func TestBadArguments(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		h.BusyboxTree(t, "spare")
		h.WriteFile(t, "/bad.py", badArguments, 0o644)
		h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "sleep", "1000000")
		waitMachine(t, h, "bb")
		before := daemonState(t, h)
		out := h.MustRun(t, "python3", "/bad.py")
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) < 300 {
			t.Errorf("only %d answers:\n%s", len(lines), out)
		}
		for _, line := range lines {
			f := strings.Fields(line)
			answer, took := f[len(f)-2], f[len(f)-1]
			if answer == "OK" && !badAllowed.MatchString(line) || answer != "OK" && !knownError.MatchString(answer) {
				t.Errorf("answer: %s", line)
			}
			// A long string has a long way, and the machine may be busy.
			if ms, err := strconv.Atoi(took); err != nil || ms > 5000 {
				t.Errorf("slow: %s", line)
			}
		}
		if got := machines(t, h); len(got) != 1 {
			t.Errorf("machines: got %v, want [bb]", got)
		}
		if pid := h.DaemonPID(t); pid != before.pid {
			t.Fatal("the daemon died")
		}
		host.Eventually(t, 20*time.Second, func() error {
			after := daemonState(t, h)
			if after.fds > before.fds+2 || after.rss > before.rss+12<<10 {
				return fmt.Errorf("%d descriptors, %d before; RSS %d KiB, before %d", after.fds, before.fds, after.rss, before.rss)
			}
			t.Logf("%d answers; descriptors %d, before %d; RSS %d KiB, before %d", len(lines), after.fds, before.fds, after.rss, before.rss)
			return nil
		})
	})
}
