//go:build integration

package integration

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machined/tests/host"
)

// supervisorOf is the parent of a machine's first process.
const supervisorOf = `supervisor() { ps -o ppid= -p $(machinectl show $1 -p Leader --value) | tr -d ' '; }
`

// rests waits until the small program stands by a machine, and returns its PID.
func rests(t *testing.T, h *host.Host, machine string) int {
	t.Helper()
	var pid int
	host.Eventually(t, 30*time.Second, func() error {
		r := h.Try("bash", "-c", supervisorOf+"p=$(supervisor "+machine+"); [ $(readlink /proc/$p/exe) = /usr/lib/machined/machine-wait ] && [ -z \"$(pgrep -P $p nspawn)\" ] && echo $p")
		var err error
		if pid, err = strconv.Atoi(strings.TrimSpace(r.Stdout)); err != nil {
			return fmt.Errorf("nobody rests: %v", r)
		}
		return nil
	})
	return pid
}

func pss(t *testing.T, h *host.Host, pid int) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(h.Shell(t, fmt.Sprintf("awk '/^Pss:/ {print $2}' /proc/%d/smaps_rollup", pid))))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRest goes through what can happen while nothing but the small program stands
// by a machine: it costs little, and nothing is lost.
func TestRest(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.RunOwnDaemon(t)
		h.BusyboxTree(t, "bb")
		h.WriteFile(t, "/run/systemd/system/systemd-nspawn@bb.service.d/short.conf",
			"[Service]\nWatchdogSec=10s\nExecStart=\nExecStart=systemd-nspawn --quiet --keep-unit --boot --network-veth -U --settings=override --machine=%i\n", 0o644)
		h.Shell(t, "systemctl daemon-reload; cp -a /var/lib/machines/bb /var/lib/machines/st")
		before := snapshot(t, h)
		clean := func() {
			t.Helper()
			waitGone(t, h)
			unchanged(t, h, before)
		}
		const ready = `echo ready; trap 'echo asked; exit 7' 37; while :; do read -t 1 line && echo "got $line"; sleep 0.1; done`

		t.Run("memory", func(t *testing.T) {
			stock := h.Start(t, h.Stock("systemd-nspawn"), "-q", "-M", "st", "sleep", "1000000")
			h.MustRun(t, "machinectl", "start", "bb")
			ours := rests(t, h, "bb")
			theirs, err := strconv.Atoi(strings.TrimSpace(h.Shell(t, supervisorOf+"supervisor st")))
			if err != nil {
				t.Fatal(err)
			}
			a, b := pss(t, h, ours), pss(t, h, theirs)
			t.Logf("PSS of a service's supervisor: %d KiB, stock's %d KiB", a, b)
			if a >= b/2 {
				t.Errorf("PSS of the supervisor: got %d KiB, want less than half of stock's %d", a, b)
			}
			h.MustRun(t, "machinectl", "terminate", "st")
			stock.Wait(t)
			// It keeps the watchdog content, and the unit's end is as ever. What happens comes
			// and is over again more often than the signs of life are due, each 5 s, and must
			// not put them off: the helper stays for 2 s, and the rest is shorter, too.
			h.Shell(t, "for i in 1 2 3; do machinectl exec bb true; sleep 6.2; done")
			h.MustRun(t, "systemctl", "stop", "systemd-nspawn@bb")
			if got := strings.TrimSpace(h.Shell(t, "systemctl show -P Result systemd-nspawn@bb")); got != "success" {
				t.Errorf("result of the unit: got %q, want success", got)
			}
			clean()
		})
		t.Run("console", func(t *testing.T) {
			p := h.StartTTY(t, "", "systemd-nspawn", "-q", "-M", "bb", "--kill-signal=SIGRTMIN+3", "sh", "-c", ready)
			p.Expect(t, "ready")
			pid := rests(t, h, "bb")
			p.Send(t, "hello\r")
			p.Expect(t, "got hello")
			if got := h.Try("machinectl", "exec", "bb", "sh", "-c", "exit 5"); got.Exit != 5 {
				t.Errorf("exec in a machine at rest: %v", got)
			}
			// A helper that is killed is nothing that anybody notices.
			h.Shell(t, "machinectl exec bb sleep 1 & sleep 0.5; kill -KILL $(pgrep -P "+strconv.Itoa(pid)+" nspawn); wait || true")
			p.Send(t, "again\r")
			p.Expect(t, "got again")
			if err := p.Signal(h, unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			p.Expect(t, "asked")
			if got := p.Wait(t); got != 7 {
				t.Errorf("exit status: got %d, want 7", got)
			}
			clean()
		})
		t.Run("hotkey", func(t *testing.T) {
			p := h.StartTTY(t, "", "systemd-nspawn", "-q", "-M", "bb", "sh", "-c", ready)
			p.Expect(t, "ready")
			rests(t, h, "bb")
			p.Send(t, "\x1d\x1d\x1d")
			p.Wait(t)
			clean()
		})
		t.Run("own end", func(t *testing.T) {
			p := h.Start(t, "systemd-nspawn", "-q", "-x", "-M", "bb", "sh", "-c", "sleep 6; exit 9")
			rests(t, h, "bb")
			if got := p.Wait(t); got != 9 {
				t.Errorf("exit status: got %d, want 9", got)
			}
			clean()
		})
		t.Run("stop of the scope", func(t *testing.T) {
			p := h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "--register=no", "--kill-signal=SIGRTMIN+3", "sh", "-c", ready)
			host.Eventually(t, 20*time.Second, func() error {
				if r := h.Try("bash", "-c", "p=$(pgrep -o -f 'nspawn.*-M bb'); [ $(readlink /proc/$p/exe) = /usr/lib/machined/machine-wait ]"); r.Exit != 0 {
					return fmt.Errorf("nobody rests: %v", r)
				}
				return nil
			})
			// Nobody but PID 1 may ask for it.
			h.Shell(t, `for c in $(busctl --system --no-legend list | awk '/nspawn|machine-wait/ {print $1}'); do
setpriv --reuid=65534 --clear-groups busctl --system emit --destination=$c /org/freedesktop/systemd1/unit/machine_2dbb_2escope org.freedesktop.systemd1.Scope RequestStop; done; sleep 1`)
			if !p.Running() {
				t.Fatal("a user has stopped the machine")
			}
			h.MustRun(t, "systemctl", "stop", "machine-bb.scope")
			if got := p.Wait(t); got != 7 {
				t.Errorf("exit status: got %d, want 7: %s", got, p.Output())
			}
			clean()
		})
		t.Run("killed", func(t *testing.T) {
			h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "sleep", "1000000")
			pid := rests(t, h, "bb")
			h.MustRun(t, "kill", "-KILL", strconv.Itoa(pid))
			waitGone(t, h)
			h.MustRun(t, "systemd-nspawn", "-q", "-M", "bb", "true")
			clean()
		})
	})
}
