//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// TestFloods lets a user without rights do what costs the daemon most: calls by
// the hundred on every socket, arguments of megabytes, descriptors that nobody
// asked for, replies that nobody reads. Others are served meanwhile, and
// afterwards the daemon has what it had before.
func TestFloods(t *testing.T) {
	ours(t)
	const (
		maxKiB   = 320 << 10 // at any moment; MemoryMax= of the unit is 512 MiB
		maxGrown = 24 << 10  // KiB that stay
		maxWait  = 5 * time.Second
	)
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		h.CopyIn(t, "testdata/flood.py", "/usr/local/lib/flood.py")
		h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "-n", "--pipe", "sh", "-c", "ip addr add 192.0.2.1/32 dev host0; ip link set host0 up; exec sleep 1000000")
		host.Eventually(t, 30*time.Second, func() error { return exitError(h.Try("getent", "ahostsv4", "bb")) })
		daemon := h.DaemonPID(t)
		status := func(field string) int {
			t.Helper()
			n, err := strconv.Atoi(strings.TrimSpace(h.Shell(t, "awk '/^"+field+":/ {print $2}' /proc/"+daemon+"/status")))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		fds := func() int {
			t.Helper()
			entries, err := os.ReadDir(h.Path("/proc/" + daemon + "/fd"))
			if err != nil {
				t.Fatal(err)
			}
			return len(entries)
		}
		files, memory := fds(), status("VmRSS")
		for _, kind := range []string{"bus", "varlink", "fds", "names"} {
			t.Run(kind, func(t *testing.T) {
				flood := h.Start(t, "runuser", "-u", "alice", "--", "python3", "/usr/local/lib/flood.py", kind)
				served := 0
				for flood.Running() {
					for _, argv := range [][]string{
						{"busctl", "call", busName, busPath, managerIf, "GetMachine", "s", "bb"},
						{"getent", "ahostsv4", "bb"},
						{"machinectl", "show", "bb", "-p", "Leader"},
					} {
						if r := h.Try(argv...); r.Exit != 0 || r.Took > maxWait {
							t.Errorf("beside the flood: %v took %v", r, r.Took)
						}
						served++
					}
				}
				flood.Wait(t)
				t.Logf("%s: %s; others were served %d times; at most %d KiB", kind, strings.TrimSpace(flood.Output()), served, status("VmHWM"))
			})
		}
		if now := h.DaemonPID(t); now != daemon {
			t.Fatalf("the daemon was restarted: %s, then %s", daemon, now)
		}
		if hwm := status("VmHWM"); hwm > maxKiB {
			t.Errorf("the daemon took %d KiB, at most %d are all right", hwm, maxKiB)
		}
		host.Eventually(t, 30*time.Second, func() error {
			if now := fds(); now > files+2 { // a peer's process is known for as long as it is there
				return fmt.Errorf("descriptors: %d, then %d", files, now)
			}
			if now := status("VmRSS"); now > memory+maxGrown {
				return fmt.Errorf("RSS: %d KiB, then %d", memory, now)
			}
			return nil
		})
		if r := h.Try("machinectl", "list", "--no-pager"); r.Exit != 0 || !strings.Contains(r.Stdout, "bb") {
			t.Error(errors.New(r.String()))
		}
	})
}
