//go:build integration

package integration

import (
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// fuseMachine mounts a FUSE file system that never answers at /etc, /dev/pts and
// /hang of a machine: whoever looks in there waits for ever.
const fuseMachine = `mkdir -p /hang /sleep
for d in /etc /dev/pts /run/dbus /hang; do
	mkdir -p $d
	exec 3<>/dev/fuse
	mount -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 hang $d
	# The descriptor has to stay open, for the server not to be gone.
	sleep 1000000 & exec 3>&-
done
exec sleep 1000000`

// TestMachineHangs has a machine whose file system never answers: calls about it
// fail in time, and everything else goes on, also after hundreds of calls.
func TestMachineHangs(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		h.Start(t, "systemd-nspawn", "-q", "-x", "-D", "/var/lib/machines/bb", "-M", "good", "sleep", "1000000")
		h.Start(t, "systemd-nspawn", "-q", "-x", "-D", "/var/lib/machines/bb", "-M", "hangs", "--bind=/dev/fuse", "sh", "-c", fuseMachine)
		waitMachine(t, h, "good")
		waitMachine(t, h, "hangs")
		host.Eventually(t, 10*time.Second, func() error {
			return exitError(h.Try("sh", "-c", "grep -q ' /hang fuse' /proc/$(machinectl show hangs -p Leader --value)/mounts"))
		})
		daemon := h.DaemonPID(t)
		count := func(what string) string { return h.Shell(t, "ls /proc/"+daemon+"/"+what+" | wc -l") }
		before := count("fd")
		calls := []string{
			"GetMachineOSRelease s hangs",
			"OpenMachinePTY s hangs",
			"OpenMachineLogin s hangs",
			"OpenMachineShell sssasas hangs root /bin/sh 0 0",
			"BindMountMachine sssbb hangs /tmp /hang/x false true",
			"CopyToMachine sss hangs /etc/hostname /hang/x/y",
			"CopyFromMachine sss hangs /hang/x/y /tmp/y",
		}
		// Callers without rights, from many connections at once.
		h.Start(t, "runuser", "-u", "alice", "--", "sh", "-c", `for i in $(seq 40); do busctl call `+busName+` `+busPath+` `+managerIf+` GetMachineOSRelease s hangs & done; wait`)
		for _, c := range calls {
			argv := append([]string{"busctl", "--timeout=20", "call", busName, busPath, managerIf}, strings.Fields(c)...)
			r := h.Try(argv...)
			if r.Exit == 0 || !strings.Contains(r.Stderr, "timed out") || r.Took > 15*time.Second {
				t.Errorf("%v: want an error within 15 s", r)
			}
		}
		start := time.Now()
		for _, argv := range [][]string{
			{"machinectl", "list", "--no-pager"},
			{"machinectl", "bind", "--mkdir", "good", "/tmp", "/mnt/tmp"},
			{"machinectl", "copy-to", "good", "/etc/hostname", "/mnt/hostname"},
			{"machinectl", "status", "good", "--no-pager"},
		} {
			if r := h.Try(argv...); r.Exit != 0 {
				t.Errorf("beside a machine that hangs: %v", r)
			}
		}
		// Machines come and go, and those who listen hear of it.
		h.Start(t, "systemd-nspawn", "-q", "-x", "-D", "/var/lib/machines/bb", "-M", "later", "sleep", "1000000")
		waitMachine(t, h, "later")
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("the rest took %v", took)
		}
		for _, name := range []string{"hangs", "later", "good"} {
			h.MustRun(t, "machinectl", "terminate", name)
		}
		waitGone(t, h)
		if now := h.DaemonPID(t); now != daemon {
			t.Errorf("the daemon was restarted: %s, then %s", daemon, now)
		}
		host.Eventually(t, 20*time.Second, func() error {
			if after := count("fd"); after > before {
				return exitError(host.Result{Exit: 1, Stdout: "descriptors: " + before + "then " + after})
			}
			return nil
		})
	})
}
