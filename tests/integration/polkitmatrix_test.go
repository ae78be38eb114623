//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// matrixRule gives alice one answer to all that machined asks about.
const matrixRule = `polkit.addRule(function(action, subject) {
	if (action.id.indexOf("org.freedesktop.machine1.") == 0 && subject.user == "alice")
		return polkit.Result.ANSWER;
});
`

// flagScript calls as callScript does, and lets polkit ask a person if its first
// argument is "ask".
const flagScript = `import sys, dbus, dbus.lowlevel
flag, name, sig, words = sys.argv[1] == "ask", sys.argv[2], sys.argv[3], sys.argv[4:]
types = {"s": str, "u": int, "i": int, "t": int, "b": lambda w: w == "true"}
m = dbus.lowlevel.MethodCallMessage("org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager", name)
args, rest = [], sig
while rest:
    if rest == "a(sv)":
        words.pop(0); args.append(dbus.Array([], signature="(sv)")) # an empty one is enough
        break
    if rest.startswith("ay") or rest.startswith("as"):
        n = int(words.pop(0)); args.append([words.pop(0) for _ in range(n)]); rest = rest[2:]
        continue
    args.append(types[rest[0]](words.pop(0))); rest = rest[1:]
m.append(*args, signature=sig)
m.set_allow_interactive_authorization(flag) if hasattr(m, "set_allow_interactive_authorization") else None
try:
    dbus.SystemBus().send_message_with_reply_and_block(m, 20)
    print("OK")
except dbus.DBusException as e:
    print(e.get_dbus_name())
`

// matrix is a harmless call for each action.
var matrix = []struct {
	action, name, arguments string
	owner                   bool // the machine's owner may, without being asked
}{
	{"manage-machines", "KillMachine", "ssi MACHINE leader 18", true},
	{"manage-machines", "OpenMachineRootDirectory", "s MACHINE", false},
	{"open-pty", "OpenMachinePTY", "s MACHINE", true},
	{"host-open-pty", "OpenMachinePTY", "s .host", false},
	{"shell", "OpenMachineShell", "sssasas MACHINE root /bin/true 0 0", true},
	{"host-shell", "OpenMachineShell", "sssasas .host root /bin/true 0 0", false},
	{"login", "OpenMachineLogin", "s MACHINE", true},
	{"host-login", "OpenMachineLogin", "s .host", false},
	{"manage-images", "MarkImageReadOnly", "sb spare false", false},
	{"inspect-machines", "GetMachineOSRelease", "s MACHINE", false},
	{"create-machine", "CreateMachine", "sayssusa(sv) x 0 t container PID / 0", false},
	{"register-machine", "RegisterMachine", "sayssus x 0 t container PID /", false},
}

// passed says that a call was authorised: it went well, or failed for what it
// asked and not for who asked. The machine is a busybox, with no bus for shells.
func passed(answer string) bool {
	return answer != denied && answer != askFirst && !strings.Contains(answer, "Rejected") && answer != ""
}

// TestPolkitMatrix: every action for root, for users whom polkit lets, refuses,
// and wants to authenticate, with an agent and without, and for the owner.
func TestPolkitMatrix(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		h.BusyboxTree(t, "spare")
		h.WriteFile(t, "/flag.py", flagScript, 0o644)
		h.Shell(t, "echo alice:secret | chpasswd")
		h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "sleep", "1000000")
		waitMachine(t, h, "bb")
		sleeper := func() string {
			h.Start(t, "setpriv", "--reuid=alice", "--regid=alice", "--init-groups", "sleep", "1000000")
			pid := ""
			host.Eventually(t, 10*time.Second, func() error {
				r := h.Try("pgrep", "-n", "-u", "alice", "-x", "sleep")
				pid = strings.TrimSpace(r.Stdout)
				return exitError(r)
			})
			return pid
		}
		pid := sleeper()
		command := func(flag, machine, name, arguments string) string {
			arguments = strings.NewReplacer("MACHINE", machine, "PID", pid).Replace(arguments)
			return fmt.Sprintf("python3 /flag.py %s %s %s", flag, name, shellWords(arguments))
		}
		as := func(user, flag, machine, name, arguments string) string {
			var r host.Result
			if user == "root" {
				r = h.Try("sh", "-c", command(flag, machine, name, arguments))
			} else {
				r = h.TryAs(user, "sh", "-c", command(flag, machine, name, arguments))
			}
			if name == "RegisterMachine" || name == "CreateMachine" {
				h.Try("busctl", "call", busName, busPath, managerIf, "UnregisterMachine", "s", "x")
			}
			return strings.TrimSpace(r.Stdout + r.Stderr)
		}
		rule := func(answer string) {
			h.WriteFile(t, "/etc/polkit-1/rules.d/10-test.rules", strings.ReplaceAll(matrixRule, "ANSWER", answer), 0o644)
			h.MustRun(t, "systemctl", "restart", "polkit.service")
		}
		check := func(who, want string, f func(name, arguments string) string) {
			t.Helper()
			for _, m := range matrix {
				got := f(m.name, m.arguments)
				if ok := want == "" && passed(got) || got == want; !ok {
					t.Errorf("%s, %s by %s %s: got %q, want %q", who, m.action, m.name, m.arguments, got, want)
				}
			}
		}
		rule("NO")
		check("root", "", func(n, a string) string { return as("root", "quiet", "bb", n, a) })
		check("refused", denied, func(n, a string) string { return as("alice", "quiet", "bb", n, a) })
		check("refused, may be asked", denied, func(n, a string) string { return as("alice", "ask", "bb", n, a) })
		rule("YES")
		check("allowed", "", func(n, a string) string { return as("alice", "quiet", "bb", n, a) })
		rule("AUTH_SELF")
		check("to authenticate", askFirst, func(n, a string) string { return as("alice", "quiet", "bb", n, a) })
		check("to authenticate, nobody to ask", askFirst, func(n, a string) string { return as("alice", "ask", "bb", n, a) })
		t.Run("agent", func(t *testing.T) {
			withAgent(t, h, denied, command("ask", "bb", "KillMachine", "ssi MACHINE leader 18"))
		})
		t.Run("owner", func(t *testing.T) {
			rule("YES")
			if got := strings.TrimSpace(h.TryAs("alice", "sh", "-c", command("quiet", "", "RegisterMachine", "sayssus own 0 t container PID /")).Stdout); got != "OK" {
				t.Fatalf("registration of a user's own process: %s", got)
			}
			rule("NO")
			for _, m := range matrix {
				if !strings.Contains(m.arguments, "MACHINE") {
					continue
				}
				got := as("alice", "quiet", "own", m.name, m.arguments)
				want := m.owner && m.name != "OpenMachineShell" // root's shell there would be root's here
				if passed(got) != want {
					t.Errorf("owner, %s by %s: got %q, allowed is %t", m.action, m.name, got, want)
				}
				if other := as("bob", "quiet", "own", m.name, m.arguments); passed(other) {
					t.Errorf("another user, %s by %s: got %q", m.action, m.name, other)
				}
			}
			if got := as("alice", "quiet", "own", "UnregisterMachine", "s MACHINE"); got != "OK" {
				t.Errorf("owner, UnregisterMachine: %s", got)
			}
		})
	})
}

// withAgent runs a call, which prints OK or its error, with the text agent of
// polkit at hand, which a person answers with the right password, and with a
// wrong one: then the error is refused.
func withAgent(t *testing.T, h *host.Host, refused, command string) {
	t.Helper()
	if h.Try("sh", "-c", "command -v pkttyagent").Exit != 0 {
		t.Skip("no pkttyagent here")
	}
	for _, c := range []struct {
		password, want string
	}{{"secret", "OK"}, {"wrong", refused}} {
		// The agent is there for the shell's process, which becomes the caller.
		script := "mkfifo /tmp/agent.$$; pkttyagent --process $$ --notify-fd 3 3>/tmp/agent.$$ & cat /tmp/agent.$$; exec " + command
		p := h.StartTTY(t, "alice", "bash", "-c", script)
		p.Expect(t, "assword:")
		// The agent throws away what was typed before it turned the echo off, and
		// nothing tells when it has: a person types again.
		var typed time.Time
		host.Eventually(t, 15*time.Second, func() error {
			if strings.Contains(p.Output(), c.want) {
				return nil
			}
			if time.Since(typed) > 2*time.Second && p.Running() {
				p.Send(t, c.password+"\n")
				typed = time.Now()
			}
			return fmt.Errorf("no %q in %q", c.want, p.Output())
		})
	}
}
