//go:build integration

package integration

import (
	"errors"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// TestSecurityHelpers has a machine watch for processes from outside while the
// daemon and its clients act on it: what comes in must not be something that the
// machine can trace, write to, or find the host by (CVE-2019-5736, CVE-2024-21626).
func TestSecurityHelpers(t *testing.T) {
	ours(t)
	h := host.Boot(t, host.Config{Suite: host.Trixie})
	before := snapshot(t, h)
	h.Shell(t, "mkdir -p /var/lib/only-on-host /var/tmp/src; echo x >/var/tmp/src/f")
	for _, flags := range [][]string{nil, {"-U"}} {
		name := "plain"
		if flags != nil {
			name = "users"
		}
		t.Run(name, func(t *testing.T) {
			tree := h.BusyboxTree(t, name)
			h.Compile(t, "testdata/escape.c", tree+"/bin/escape", "-static")
			p := h.Start(t, append(append([]string{"systemd-nspawn", "-q", "-M", name, "--private-network", "--pipe"}, flags...), "escape", "lurk", "/end")...)
			p.Expect(t, "lurking")
			waitMachine(t, h, name)
			leader := strings.TrimSpace(h.MustRun(t, "machinectl", "show", name, "-p", "Leader", "--value"))
			for range 3 {
				h.MustRun(t, "machinectl", "copy-to", name, "/var/tmp/src", "/var/tmp/copied")
				h.MustRun(t, "rm", "-rf", tree+"/var/tmp/copied", "/var/tmp/back")
				h.MustRun(t, "machinectl", "copy-from", name, "/etc", "/var/tmp/back")
				h.MustRun(t, "machinectl", "bind", "--mkdir", name, "/var/tmp/src", "/mnt/src")
				h.MustRun(t, "machinectl", "unbind", name, "/mnt/src")
				h.MustRun(t, "machinectl", "status", "--no-pager", name)
				h.Try("machinectl", "shell", name, "/bin/true") // no bus: refused after a look
			}
			if out := p.Output(); strings.Contains(out, "seen ") || strings.Contains(out, "through") {
				t.Errorf("the machine saw:\n%s", out)
			}
			// Somebody who does come in is seen: the watch is no sham.
			h.MustRun(t, "nsenter", "-t", leader, "-m", "-p", "--", "/bin/sleep", "1")
			h.Shell(t, "touch "+tree+"/end")
			p.Expect(t, "end\n")
			if !strings.Contains(p.Output(), "seen ") {
				t.Error("the machine saw nobody, nsenter neither")
			}
			p.Wait(t)
			host.Eventually(t, 10*time.Second, func() error {
				if len(machines(t, h)) > 0 {
					return errors.New("the machine is still there")
				}
				return nil
			})
		})
	}
	unchanged(t, h, before)
}
