//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// varlinkScript makes calls one after the other, each on a connection of its
// own, and prints for each OK or the error. Arguments: a list of [method,
// parameters]; with "ask" before it polkit may ask a person.
const varlinkScript = `import json, socket, sys
flag, calls = sys.argv[1] == "ask", json.loads(sys.argv[2])
for method, parameters in calls:
    if flag: parameters["allowInteractiveAuthentication"] = True
    s = socket.socket(socket.AF_UNIX); s.settimeout(30)
    s.connect("/run/systemd/machine/io.systemd.Machine")
    s.sendall(json.dumps({"method": method, "parameters": parameters}).encode() + b"\0")
    data = b""
    while not data.endswith(b"\0"):
        more = s.recv(65536)
        if not more: break
        data += more
    s.close()
    print(json.loads(data[:-1].split(b"\0")[0]).get("error", "OK"))
`

// The two answers of who may not.
const (
	varlinkDenied = "org.varlink.service.PermissionDenied"
	varlinkAsk    = "io.systemd.InteractiveAuthenticationRequired"
)

// varlinkMatrix is a harmless call for each action.
var varlinkMatrix = []struct {
	action, method, parameters string
	owner                      bool // the machine's owner may, without being asked
}{
	{"manage-machines", "io.systemd.Machine.Kill", `{"name":"MACHINE","whom":"leader","signal":18}`, true},
	{"manage-machines", "io.systemd.Machine.OpenRootDirectory", `{"name":"MACHINE"}`, false},
	{"manage-machines", "io.systemd.Machine.BindMount", `{"name":"MACHINE","source":"/nonexistent","destination":"/mnt"}`, false},
	{"manage-machines", "io.systemd.Machine.CopyTo", `{"name":"MACHINE","source":"/nonexistent","destination":"/mnt"}`, false},
	{"manage-machines", "io.systemd.Machine.CopyFrom", `{"name":"MACHINE","source":"/nonexistent","destination":"/mnt"}`, false},
	{"open-pty", "io.systemd.Machine.Open", `{"name":"MACHINE","mode":"tty"}`, false},
	{"login", "io.systemd.Machine.Open", `{"name":"MACHINE","mode":"login"}`, false},
	{"shell", "io.systemd.Machine.Open", `{"name":"MACHINE","mode":"shell","user":"root","path":"/bin/true"}`, false},
	{"host-open-pty", "io.systemd.Machine.Open", `{"name":".host","mode":"tty"}`, false},
	{"host-login", "io.systemd.Machine.Open", `{"name":".host","mode":"login"}`, false},
	{"host-shell", "io.systemd.Machine.Open", `{"name":".host","mode":"shell","user":"root","path":"/bin/true"}`, false},
	{"inspect-machines", "io.systemd.Machine.List", `{"name":"MACHINE","acquireMetadata":"graceful"}`, false},
	{"inspect-images", "io.systemd.MachineImage.List", `{"name":"spare","acquireMetadata":"graceful"}`, false},
	{"manage-images", "io.systemd.MachineImage.Update", `{"name":"spare","readOnly":false}`, false},
	{"manage-images", "io.systemd.MachineImage.Clone", `{"name":"spare","newName":"spare"}`, false},
	{"manage-images", "io.systemd.MachineImage.SetPoolLimit", `{"limit":1000000}`, false},
	{"create-machine", "io.systemd.Machine.Register", `{"name":"x1","class":"container","leader":PID,"allocateUnit":true}`, false},
	{"register-machine", "io.systemd.Machine.Register", `{"name":"x2","class":"container","leader":PID}`, false},
}

// TestPolkitMatrixVarlink is TestPolkitMatrix for the calls by varlink, whose
// callers polkit knows by their processes.
func TestPolkitMatrixVarlink(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		h.BusyboxTree(t, "spare")
		h.WriteFile(t, "/varlink.py", varlinkScript, 0o644)
		h.Shell(t, "echo alice:secret | chpasswd")
		h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "sleep", "1000000")
		waitMachine(t, h, "bb")
		h.Start(t, "setpriv", "--reuid=alice", "--regid=alice", "--init-groups", "sleep", "1000000")
		pid := ""
		host.Eventually(t, 10*time.Second, func() error {
			r := h.Try("pgrep", "-n", "-u", "alice", "-x", "sleep")
			pid = strings.TrimSpace(r.Stdout)
			return exitError(r)
		})
		// answers makes all calls of the matrix as a user.
		answers := func(user, flag, machine string) []string {
			var calls [][2]any
			for _, m := range varlinkMatrix {
				calls = append(calls, [2]any{m.method, json.RawMessage(strings.NewReplacer("MACHINE", machine, "PID", pid).Replace(m.parameters))})
			}
			text, err := json.Marshal(calls)
			if err != nil {
				t.Fatal(err)
			}
			r := h.TryAs(user, "python3", "/varlink.py", flag, string(text))
			if user == "root" {
				r = h.Try("python3", "/varlink.py", flag, string(text))
			}
			for _, name := range []string{"x1", "x2"} {
				h.Try("busctl", "call", busName, busPath, managerIf, "UnregisterMachine", "s", name)
			}
			out := strings.Fields(r.Stdout)
			if len(out) != len(calls) {
				t.Fatalf("%d answers to %d calls: %v", len(out), len(calls), r)
			}
			return out
		}
		rule := func(answer string) {
			h.WriteFile(t, "/etc/polkit-1/rules.d/10-test.rules", strings.ReplaceAll(matrixRule, "ANSWER", answer), 0o644)
			h.MustRun(t, "systemctl", "restart", "polkit.service")
		}
		check := func(who, want string, got []string) {
			t.Helper()
			for i, m := range varlinkMatrix {
				passed := got[i] != varlinkDenied && got[i] != varlinkAsk
				if want == "" && !passed || want != "" && got[i] != want {
					t.Errorf("%s, %s by %s %s: got %q, want %q", who, m.action, m.method, m.parameters, got[i], want)
				}
			}
		}
		rule("NO")
		check("root", "", answers("root", "quiet", "bb"))
		check("refused", varlinkDenied, answers("alice", "quiet", "bb"))
		check("refused, may be asked", varlinkDenied, answers("alice", "ask", "bb"))
		rule("YES")
		check("allowed", "", answers("alice", "quiet", "bb"))
		check("another user", varlinkAsk, answers("bob", "quiet", "bb"))
		rule("AUTH_SELF")
		check("to authenticate", varlinkAsk, answers("alice", "quiet", "bb"))
		check("to authenticate, nobody to ask", varlinkAsk, answers("alice", "ask", "bb"))
		t.Run("agent", func(t *testing.T) {
			withAgent(t, h, varlinkDenied, `python3 /varlink.py ask '[["io.systemd.Machine.Kill",{"name":"bb","whom":"leader","signal":18}]]'`)
		})
		t.Run("owner", func(t *testing.T) {
			rule("YES")
			register := fmt.Sprintf(`[["io.systemd.Machine.Register",{"name":"own","class":"container","leader":%s}]]`, pid)
			if got := strings.TrimSpace(h.TryAs("alice", "python3", "/varlink.py", "quiet", register).Stdout); got != "OK" {
				t.Fatalf("registration of a user's own process: %s", got)
			}
			rule("NO")
			alice, bob := answers("alice", "quiet", "own"), answers("bob", "quiet", "own")
			for i, m := range varlinkMatrix {
				if !strings.Contains(m.parameters, "MACHINE") {
					continue
				}
				if passed := alice[i] != varlinkDenied && alice[i] != varlinkAsk; passed != m.owner {
					t.Errorf("owner, %s by %s: got %q, allowed is %t", m.action, m.method, alice[i], m.owner)
				}
				if bob[i] != varlinkDenied && bob[i] != varlinkAsk {
					t.Errorf("another user, %s by %s: got %q", m.action, m.method, bob[i])
				}
			}
			if got := strings.TrimSpace(h.TryAs("alice", "python3", "/varlink.py", "quiet", `[["io.systemd.Machine.Unregister",{"name":"own"}]]`).Stdout); got != "OK" {
				t.Errorf("owner, Unregister: %s", got)
			}
		})
	})
}
