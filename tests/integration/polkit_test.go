//go:build integration

package integration

import (
	"strings"
	"testing"

	"machined/tests/host"
)

// rule lets alice have one action.
const rule = `polkit.addRule(function(action, subject) {
	if (action.id == "ACTION" && subject.user == "alice")
		return polkit.Result.YES;
});
`

// grant gives alice an action; polkit reads rules anew when the folder changes,
// and a restart makes sure of it.
func grant(t *testing.T, h *host.Host, action string) {
	t.Helper()
	h.WriteFile(t, "/etc/polkit-1/rules.d/10-test.rules", strings.ReplaceAll(rule, "ACTION", action), 0o644)
	h.MustRun(t, "systemctl", "restart", "polkit.service")
}

// TestUserStart: manage-machines alone lets a user start machines, which
// with stock takes a right over systemd itself.
func TestUserStart(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		h.BusyboxTree(t, "bb")
		r := h.TryAs("alice", "machinectl", "start", "bb")
		if r.Exit == 0 {
			t.Fatalf("start without a rule: %v", r)
		}
		if !strings.Contains(r.Stderr, "ccess denied") && !strings.Contains(r.Stderr, "uthentication required") {
			t.Errorf("start without a rule: no reason in %v", r)
		}
		grant(t, h, busName+".manage-machines")
		if r := h.TryAs("alice", "machinectl", "start", "bb"); r.Exit != 0 {
			t.Fatalf("start with a rule: %v", r)
		}
		if r := h.TryAs("bob", "machinectl", "terminate", "bb"); r.Exit == 0 {
			t.Errorf("somebody else's right: %v", r)
		}
		for _, argv := range [][]string{{"enable", "bb"}, {"disable", "bb"}, {"terminate", "bb"}} {
			if r := h.TryAs("alice", append([]string{"machinectl"}, argv...)...); r.Exit != 0 {
				t.Errorf("%v with a rule: %v", argv, r)
			}
		}
		waitGone(t, h)
		unchanged(t, h, before)
	})
}

// TestGuards: without a rule a user may look, and do nothing.
func TestGuards(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		p := h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "sleep", "1000000")
		waitMachine(t, h, "bb")
		method := func(name string, args ...string) host.Result {
			return h.TryAs("alice", append([]string{"busctl", "call", "--", busName, busPath, managerIf, name}, args...)...)
		}
		table := []struct {
			name string
			args []string
		}{
			{"CreateMachine", []string{"sayssusa(sv)", "x", "0", "t", "container", "0", "", "0"}},
			{"RegisterMachine", []string{"sayssus", "x", "0", "t", "container", "0", ""}},
			{"UnregisterMachine", []string{"s", "bb"}},
			{"TerminateMachine", []string{"s", "bb"}},
			{"KillMachine", []string{"ssi", "bb", "leader", "9"}},
			{"OpenMachinePTY", []string{"s", "bb"}},
			{"OpenMachineLogin", []string{"s", "bb"}},
			{"OpenMachineShell", []string{"sssasas", "bb", "", "", "0", "0"}},
			{"OpenMachineShell", []string{"sssasas", ".host", "root", "/bin/true", "1", "true", "0"}},
			{"BindMountMachine", []string{"sssbb", "bb", "/etc", "/mnt", "true", "true"}},
			{"CopyFromMachine", []string{"sss", "bb", "/etc/passwd", "/tmp/x"}},
			{"CopyToMachine", []string{"sss", "bb", "/etc/passwd", "/tmp/x"}},
			{"OpenMachineRootDirectory", []string{"s", "bb"}},
			{"RemoveImage", []string{"s", "bb"}},
			{"RenameImage", []string{"ss", "bb", "cc"}},
			{"CloneImage", []string{"ssb", "bb", "cc", "false"}},
			{"MarkImageReadOnly", []string{"sb", "bb", "true"}},
			{"SetImageLimit", []string{"st", "bb", "1000000"}},
			{"SetPoolLimit", []string{"t", "1000000"}},
			{"CleanPool", []string{"s", "all"}},
		}
		for _, c := range table {
			r := method(c.name, c.args...)
			if r.Exit == 0 {
				t.Errorf("%s as a user: allowed: %v", c.name, r)
			} else if !strings.Contains(r.Stderr, "ccess denied") && !strings.Contains(r.Stderr, "uthentication required") &&
				!strings.Contains(r.Stderr, "ermission denied") {
				t.Errorf("%s as a user: no refusal in %v", c.name, r)
			}
		}
		for _, c := range [][]string{{"GetMachine", "s", "bb"}, {"ListMachines"}, {"ListImages"}, {"GetImage", "s", "bb"}, {"GetMachineUIDShift", "s", "bb"}} {
			if r := method(c[0], c[1:]...); r.Exit != 0 {
				t.Errorf("%s as a user: %v", c[0], r)
			}
		}
		if !p.Running() {
			t.Errorf("the machine died: %s", p.Output())
		}
	})
}
