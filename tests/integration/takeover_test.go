//go:build integration

package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// TestTakeover changes the daemon under three running machines, to stock's and back.
func TestTakeover(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "one")
		h.BusyboxTree(t, "two")
		h.OSTree(t, "deb")
		h.MustRun(t, "machinectl", "start", "deb")
		waitRunning(t, h, "deb")
		h.Start(t, "systemd-nspawn", "-q", "-M", "one", "sleep", "1000000")
		h.Start(t, "systemd-nspawn", "-q", "-M", "two", "-U", "-n", "sleep", "1000000")
		waitMachine(t, h, "one")
		waitMachine(t, h, "two")
		list := func() string {
			var all strings.Builder
			// Without addresses: they come when networkd in the machine pleases.
			for line := range strings.Lines(h.MustRun(t, h.Stock("machinectl"), "list", "--no-legend", "--no-pager")) {
				all.WriteString(strings.Join(strings.Fields(line)[:5], " ") + "\n")
			}
			for _, m := range []string{"deb", "one", "two"} {
				for _, p := range []string{"Name", "Id", "Class", "Service", "Leader", "Unit", "RootDirectory", "Timestamp", "NetworkInterfaces", "State"} {
					all.WriteString(h.MustRun(t, "busctl", "get-property", busName, busPath+"/machine/"+m, busName+".Machine", p))
				}
			}
			return all.String()
		}
		want := list()
		h.RestartDaemon(t)
		if got := list(); got != want {
			t.Errorf("after a restart: got\n%s\nwant\n%s", got, want)
		}
		if h.Impl == host.Ours {
			h.RunStockDaemon(t)
			if got := list(); got != want {
				t.Errorf("stock took over: got\n%s\nwant\n%s", got, want)
			}
			h.RunOwnDaemon(t)
			if got := list(); got != want {
				t.Errorf("taken back from stock: got\n%s\nwant\n%s", got, want)
			}
		}
		for _, m := range []string{"deb", "one", "two"} {
			h.MustRun(t, "machinectl", "terminate", m)
		}
		waitGone(t, h)
	})
}

// TestKilledDaemon kills the daemon at random moments while machines come and
// go; after each, the list and the kernel agree.
func TestKilledDaemon(t *testing.T) {
	rounds := 50
	if testing.Short() {
		rounds = 5
	}
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		names := []string{"m1", "m2", "m3"}
		for _, n := range names {
			h.BusyboxTree(t, n)
		}
		// systemd would refuse the sixth start in ten seconds, and the bus waits 25 s for a
		// daemon that dies while it is being activated unless something starts it again.
		h.WriteFile(t, "/run/systemd/system/systemd-machined.service.d/often.conf", "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec=0\n", 0o644)
		h.WriteFile(t, "/run/systemd/system/systemd-nspawn@.service.d/often.conf", "[Unit]\nStartLimitIntervalSec=0\n", 0o644)
		h.WriteFile(t, "/churn", churnScript, 0o755)
		h.RestartDaemon(t)
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		rnd := rand.New(rand.NewPCG(seed, 0))
		churn := h.Start(t, append([]string{"sh", "/churn"}, names...)...)
		for i := range rounds {
			<-time.After(time.Duration(rnd.Int64N(int64(120 * time.Millisecond)))) // the moment is the input here
			h.Try("systemctl", "kill", "-s", "KILL", "systemd-machined.service")
			if i%10 == 9 { // let the churn rest, so that the truth stands still
				h.WriteFile(t, "/run/churn-pause", "", 0o644)
				agree(t, h)
				if err := os.Remove(h.Path("/run/churn-pause")); err != nil {
					t.Fatal(err)
				}
			}
			if !churn.Running() {
				t.Fatalf("churn ended: %s", churn.Output())
			}
		}
		h.WriteFile(t, "/run/churn-stop", "", 0o644)
		churn.Wait(t)
		agree(t, h)
		for _, n := range names {
			h.Try("systemctl", "stop", "systemd-nspawn@"+n+".service")
		}
		waitGone(t, h)
		h.Try("systemctl", "reset-failed")
		unchanged(t, h, before)
	})
}

// churnScript starts and stops machines until told to stop; while
// /run/churn-pause exists it does nothing.
const churnScript = `#!/bin/sh
while [ ! -e /run/churn-stop ]; do
	for m in "$@"; do
		while [ -e /run/churn-pause ]; do touch /run/churn-paused; sleep 0.05; done
		rm -f /run/churn-paused
		systemctl start systemd-nspawn@$m.service 2>/dev/null
	done
	for m in "$@"; do
		while [ -e /run/churn-pause ]; do touch /run/churn-paused; sleep 0.05; done
		rm -f /run/churn-paused
		systemctl stop systemd-nspawn@$m.service 2>/dev/null
	done
done
`

// agree waits until the daemon's list names exactly the machines that run.
func agree(t *testing.T, h *host.Host) {
	t.Helper()
	host.Eventually(t, 60*time.Second, func() error {
		_, stopped := os.Stat(h.Path("/run/churn-stop"))
		if _, err := os.Stat(h.Path("/run/churn-paused")); err != nil && stopped != nil {
			return err
		}
		return nil
	})
	host.Eventually(t, 15*time.Second, func() error {
		got := machines(t, h)
		dirs, err := filepath.Glob(h.Path("/sys/fs/cgroup/machine.slice/systemd-nspawn@*.service/payload"))
		if err != nil {
			return err
		}
		var want []string
		for _, d := range dirs {
			events, err := os.ReadFile(filepath.Join(d, "cgroup.events"))
			if err != nil || !strings.Contains(string(events), "populated 1") {
				continue
			}
			unit := filepath.Base(filepath.Dir(d))
			want = append(want, strings.TrimSuffix(strings.TrimPrefix(unit, "systemd-nspawn@"), ".service"))
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			return fmt.Errorf("listed: %v; running: %v", got, want)
		}
		return nil
	})
}
