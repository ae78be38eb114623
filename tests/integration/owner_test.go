//go:build integration

package integration

import (
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// TestForeignUnit: a user registers a process of his in a unit of root's. What he
// may do to his machine he can't do to the rest of the unit.
func TestForeignUnit(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.WriteFile(t, "/etc/polkit-1/rules.d/10-register.rules", `polkit.addRule(function(a, s) {
	if (a.id == "org.freedesktop.machine1.register-machine" && s.user == "alice") return polkit.Result.YES; });
`, 0o644)
		h.MustRun(t, "systemd-run", "-q", "--unit=shared", "sh", "-c", "setpriv --reuid=alice --regid=alice --clear-groups sleep 1111111 & setpriv --reuid=alice --regid=alice --clear-groups sleep 1111112 & sleep 2222222")
		pid := func(command string) (found string) {
			host.Eventually(t, 10*time.Second, func() error {
				r := h.Try("pgrep", "-x", "-f", command)
				found = strings.TrimSpace(r.Stdout)
				return exitError(r)
			})
			return found
		}
		call := func(args ...string) host.Result {
			return h.TryAs("alice", append([]string{"busctl", "call", busName, busPath, managerIf}, args...)...)
		}
		rest := pid("sleep 2222222")
		for _, test := range []struct {
			leader string
			act    []string
		}{{pid("sleep 1111111"), []string{"KillMachine", "ssi", "guest", "all", "9"}}, {pid("sleep 1111112"), []string{"TerminateMachine", "s", "guest"}}} {
			host.Eventually(t, 10*time.Second, func() error {
				return exitError(call("RegisterMachine", "sayssus", "guest", "0", "test", "container", test.leader, ""))
			})
			if got := h.MustRun(t, "machinectl", "show", "guest", "-p", "Unit", "--value"); got != "shared.service\n" {
				t.Errorf("unit %q", got)
			}
			h.RestartDaemon(t) // which has to find out again
			if r := h.Try("busctl", "call", busName, busPath, managerIf, "GetMachineByPID", "u", rest); r.Exit == 0 {
				t.Errorf("the rest of the unit is in a machine: %v", r)
			}
			if r := call(test.act...); r.Exit != 0 {
				t.Error(r)
			}
			waitGone(t, h)
		}
		if got := pid("sleep 2222222"); got != rest {
			t.Errorf("root's process was %s and is %s", rest, got)
		}
		if got := h.MustRun(t, "systemctl", "is-active", "shared"); got != "active\n" {
			t.Errorf("root's unit is %s", got)
		}
		// A program that takes root's rights is not his any more, though he has started it.
		h.Shell(t, "cp $(command -v setpriv) /usr/local/bin/become; chmod 4755 /usr/local/bin/become; mkfifo -m 666 /go")
		p := h.Start(t, "setpriv", "--reuid=alice", "--regid=alice", "--init-groups", "sh", "-c", `echo "leader $$."; read go </go; exec become --ruid=root sleep 4444444`)
		line := p.Expect(t, ".")
		leader := strings.TrimSuffix(line[strings.LastIndex(line, " ")+1:], ".")
		if r := call("RegisterMachine", "sayssus", "risen", "0", "test", "container", leader, ""); r.Exit != 0 {
			t.Fatal(r)
		}
		if r := call("KillMachine", "ssi", "risen", "leader", "18"); r.Exit != 0 {
			t.Errorf("a signal to the user's process: %v", r)
		}
		h.Shell(t, "echo go >/go")
		pid("sleep 4444444")
		if r := call("KillMachine", "ssi", "risen", "leader", "9"); r.Exit == 0 {
			t.Errorf("a signal to a process of root's: %v", r)
		}
		h.MustRun(t, "machinectl", "kill", "-s", "KILL", "risen")
		waitGone(t, h)
		// A scope that was made for his machine is his, after a restart, too.
		h.WriteFile(t, "/etc/polkit-1/rules.d/10-create.rules", `polkit.addRule(function(a, s) {
	if (a.id == "org.freedesktop.machine1.create-machine" && s.user == "alice") return polkit.Result.YES; });
`, 0o644)
		host.Eventually(t, 10*time.Second, func() error {
			return exitError(h.TryAs("alice", "sh", "-c", "sleep 3333333 </dev/null >/dev/null 2>&1 & exec busctl call "+busName+" "+busPath+" "+managerIf+" CreateMachine 'sayssusa(sv)' made 0 test container $! / 0"))
		})
		h.RestartDaemon(t)
		if got := h.MustRun(t, "busctl", "call", busName, busPath, managerIf, "GetMachineByPID", "u", pid("sleep 3333333")); !strings.Contains(got, "machine/made") {
			t.Errorf("machine with a scope of its own: %s", got)
		}
		if r := call("TerminateMachine", "s", "made"); r.Exit != 0 {
			t.Error(r)
		}
		waitGone(t, h)
		// A unit of his own service manager's is his.
		h.Shell(t, "systemctl start user@$(id -u alice)")
		mine := strings.TrimSpace(h.Shell(t, "systemctl show -p MainPID --value user@$(id -u alice)"))
		if r := call("RegisterMachine", "sayssus", "own", "0", "test", "container", mine, ""); r.Exit != 0 {
			t.Fatal(r)
		}
		if got := h.MustRun(t, "busctl", "call", busName, busPath, managerIf, "GetMachineByPID", "u", mine); !strings.Contains(got, "machine/own") {
			t.Errorf("machine of the user's service manager: %s", got)
		}
		if r := h.TryAs("alice", "machinectl", "shell", "own", "/usr/bin/id"); r.Exit == 0 {
			t.Errorf("a shell of root's: %v", r)
		}
		if r := call("UnregisterMachine", "s", "own"); r.Exit != 0 {
			t.Error(r)
		}
		waitGone(t, h)
	})
}

// TestUsersNames: a user's machine is called as some other host is, and has any
// address in it. Nobody but the user is led to it by that name.
func TestUsersNames(t *testing.T) {
	ours(t)
	t.Parallel()
	h := host.Boot(t, host.Config{Suite: host.Trixie})
	h.WriteFile(t, "/etc/polkit-1/rules.d/10-register.rules", `polkit.addRule(function(a, s) {
	if (a.id == "org.freedesktop.machine1.register-machine" && s.user == "alice") return polkit.Result.YES; });
`, 0o644)
	p := h.Start(t, "setpriv", "--reuid=alice", "--regid=alice", "--init-groups", "unshare", "-Urn", "sh", "-c",
		`ip link set lo up; ip addr add 203.0.113.9/32 dev lo scope global; echo "leader $$"; exec sleep 1000000`)
	leader := strings.Fields(p.Expect(t, "leader ") + p.Expect(t, "\n"))
	host.Eventually(t, 10*time.Second, func() error {
		return exitError(h.TryAs("alice", "busctl", "call", busName, busPath, managerIf, "RegisterMachineWithNetwork", "sayssusai", "www.example.org", "0", "test", "container", leader[len(leader)-1], "", "1", "1"))
	})
	const name, address = "www.example.org", "203.0.113.9"
	for _, look := range [][]string{{"ahosts", name}, {"hosts", name}, {"hosts", address}} {
		get := append([]string{"getent"}, look...)
		if r := h.TryAs("alice", get...); !strings.Contains(r.Stdout, address) || !strings.Contains(r.Stdout, name) {
			t.Errorf("the user: %v", r)
		}
		if r := h.Try(get...); strings.Contains(r.Stdout, address) {
			t.Errorf("root is led astray: %v", r)
		}
	}
	hook := "/run/systemd/resolve.hook/io.systemd.Machine"
	if got := h.MustRun(t, "varlinkctl", "call", hook, "io.systemd.Resolve.Hook.QueryFilter", "{}"); strings.Contains(got, name) {
		t.Errorf("names for resolved: %s", got)
	}
	r := h.Try("varlinkctl", "call", hook, "io.systemd.Resolve.Hook.ResolveRecord", `{"question":[{"class":1,"type":1,"name":"www.example.org"},{"class":1,"type":1,"name":"a.www.example.org"}]}`)
	if r.Exit != 0 || strings.Contains(r.Stdout, "rcode") {
		t.Errorf("answer to resolved: %v", r)
	}
	if r := h.TryAs("alice", "busctl", "call", busName, busPath, managerIf, "TerminateMachine", "s", name); r.Exit != 0 {
		t.Error(r)
	}
	waitGone(t, h)
}
