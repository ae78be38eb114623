//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// TestLentInterfaces hands interfaces that the kernel destroys with their network
// namespace to a machine, and ends it in different ways. Each time they are on the
// host again, under their old names.
func TestLentInterfaces(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.RunOwnDaemon(t)
		h.BusyboxTree(t, "lent")
		h.WriteFile(t, "/run/systemd/nspawn/lent.nspawn", "[Network]\nInterface=li0:in0 li1\n", 0o644)
		h.WriteFile(t, "/run/systemd/system/systemd-nspawn@lent.service.d/true.conf", "[Service]\nExecStart=\nExecStart=systemd-nspawn --quiet --keep-unit -U --machine=%i sleep 1000000\n", 0o644)
		h.Shell(t, "systemctl daemon-reload; ip link add li0 type veth peer name li1; ip link property add dev li0 altname li-alt; ip link set li0 alias first; ip link set li1 alias second")
		// What udev does not change.
		links := func() string {
			return h.Shell(t, "for l in li0 li1; do echo $l $(cat /sys/class/net/$l/ifalias); done 2>&1; ip -o link show li-alt 2>/dev/null | grep -c li0 || :")
		}
		before, mounts := links(), snapshot(t, h)
		const spawn = "setsid systemd-nspawn -q -M lent --settings=trusted sleep 1000000 </dev/null >/dev/null 2>&1 &"
		const supervisor = "$(ps -o ppid= -p $(machinectl show lent -p Leader --value))"
		for _, c := range []struct{ name, start, end string }{
			{"ends by itself", spawn, "kill -KILL $(machinectl show lent -p Leader --value)"},
			{"terminated", spawn, "machinectl terminate lent"},
			{"supervisor killed", spawn, "kill -KILL " + supervisor},
			{"service stopped", "machinectl start lent", "systemctl stop systemd-nspawn@lent"},
			{"supervisor of a service killed", "machinectl start lent", "kill -KILL " + supervisor},
			{"service killed", "machinectl start lent", "systemctl kill -s KILL systemd-nspawn@lent"},
			{
				"killed in a unit that goes on",
				"systemd-run -q --unit=around -p KillMode=process sh -c 'systemd-nspawn -q --keep-unit -M lent --settings=trusted sleep 1000000 & exec sleep 1000000'",
				"kill -KILL " + supervisor + "; sleep 1; systemd-nspawn --cleanup -M lent; systemctl stop around",
			},
		} {
			h.Shell(t, c.start)
			host.Eventually(t, 20*time.Second, func() error {
				if r := h.Try("sh", "-c", "nsenter -t $(machinectl show lent -p Leader --value) -n ip link show in0 && systemctl list-units 'machined-interfaces-*' | grep -q exited"); r.Exit != 0 {
					return fmt.Errorf("%s: %v", c.name, r)
				}
				return nil
			})
			if r := h.Try("systemd-nspawn", "--cleanup", "-M", "lent"); r.Exit != 1 {
				t.Errorf("%s: --cleanup of a running machine: %v", c.name, r)
			}
			if r := h.Try("ip", "link", "show", "li0"); r.Exit == 0 {
				t.Fatalf("%s: li0 is still on the host", c.name)
			}
			h.Shell(t, c.end)
			host.Eventually(t, 10*time.Second, func() error {
				if got := links(); got != before {
					return fmt.Errorf("%s: links %q, want %q", c.name, got, before)
				}
				if r := h.Try("sh", "-c", "ls /run/systemd/nspawn/interfaces; systemctl list-units --all --plain --no-legend 'machined-interfaces-*'"); r.Stdout != "" {
					return fmt.Errorf("%s: left: %s", c.name, r.Stdout)
				}
				return nil
			})
			waitGone(t, h)
			h.Shell(t, "systemctl reset-failed systemd-nspawn@lent 2>/dev/null || :; systemd-nspawn --cleanup -M lent")
			unchanged(t, h, mounts)
		}
		// One that was named by another of its names keeps its own.
		if got := h.Shell(t, "systemd-nspawn -q --settings=no -M lent --network-interface=li-alt cat /proc/net/dev"); !strings.Contains(got, "li0:") {
			t.Errorf("interface li-alt in the machine: got %q, want li0", got)
		}
		if got := links(); got != before {
			t.Errorf("links after li-alt came back: %q, want %q", got, before)
		}
		// One that is on its way home is waited for.
		h.Shell(t, `d=/run/systemd/nspawn/interfaces/other+0011223344556677; mkdir $d; echo 99 lw0 in0 >$d/links
flock $d sh -c 'sleep 0.5; ip link add lw0 type veth peer name lw1' & sleep 0.1
systemd-nspawn -q --settings=no -M lent --network-interface=lw0 true; ip link show lw0; ip link del lw0; wait; systemd-nspawn --cleanup -M other; [ ! -e $d ]`)
		// The name that it is to have again is taken in the machine.
		h.Shell(t, "systemd-nspawn -q --settings=no -M lent --network-interface=li0:in0 ip link add li0 type bridge")
		if got := links(); got != before {
			t.Errorf("links after li0 came back from a machine with another li0: %q, want %q", got, before)
		}
	})
}
