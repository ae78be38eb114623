//go:build integration

package integration

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// libvirtDomain is a virtual machine without disks, under emulation.
const libvirtDomain = `<domain type='qemu'>
  <name>web-1</name>
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices>
</domain>
`

// TestLibvirt has libvirt itself start guests and end them, in each of the ways
// that guests end, and looks at what machined and its clients know of them.
func TestLibvirt(t *testing.T) {
	t.Parallel()
	h := host.Boot(t, host.Config{Suite: host.Trixie, Clients: true})
	h.WriteFile(t, "/web.xml", libvirtDomain, 0o644)
	// libvirt uses cgroups, and machined, only where it sees a controller; the
	// machine that runs this has none to give.
	h.Shell(t, "echo misc >/run/controllers; mount --bind /run/controllers /sys/fs/cgroup/cgroup.controllers; systemctl start libvirtd.service")
	virsh := func(args ...string) string {
		t.Helper()
		return h.MustRun(t, append([]string{"virsh", "-q", "-c", "qemu:///system"}, args...)...)
	}
	for i, c := range []struct{ what, end string }{
		{"destroyed", "virsh -q -c qemu:///system destroy web-1"},
		{"terminated", "machinectl terminate NAME"},
		{"killed", "machinectl kill -s KILL NAME"},
		{"its scope stopped", "systemctl stop 'UNIT'"},
	} {
		t.Run(c.what, func(t *testing.T) {
			virsh("create", "/web.xml")
			name := fmt.Sprintf("qemu-%d-web-1", i+1)
			unit := "machine-" + strings.ReplaceAll(name, "-", `\x2d`) + ".scope"
			id := strings.ReplaceAll(strings.TrimSpace(virsh("domuuid", "web-1")), "-", "")
			for client, machinectl := range clients(h) {
				match(t, h.MustRun(t, machinectl, "list"), `^`+name+` +vm +libvirt-qemu +`)
				match(t, h.MustRun(t, machinectl, "status", "--no-pager", name),
					`^`+name+`\(`+id+`\)$`, `^\t  Leader: [0-9]+ \(qemu-system-x86\)$`, `^\t Service: libvirt-qemu; class vm$`, `Unit: machine-qemu.*scope$`)
				if got := strings.TrimSpace(h.MustRun(t, machinectl, "show", name, "-p", "Unit", "--value")); got != unit {
					t.Errorf("%s client: unit %q, want %q", client, got, unit)
				}
			}
			pid := strings.TrimSpace(h.MustRun(t, "machinectl", "show", name, "-p", "Leader", "--value"))
			match(t, h.MustRun(t, "busctl", "call", busName, busPath, managerIf, "GetMachineByPID", "u", pid), `qemu_2d`)
			if got := strings.TrimSpace(h.MustRun(t, "ps", "-o", "machine=", "-p", pid)); got != name {
				t.Errorf("ps: machine %q, want %q", got, name)
			}
			h.Shell(t, strings.NewReplacer("NAME", name, "UNIT", unit).Replace(c.end))
			waitGone(t, h)
			host.Eventually(t, 20*time.Second, func() error {
				if out := h.Try("virsh", "-q", "-c", "qemu:///system", "list", "--all"); strings.TrimSpace(out.Stdout) != "" || out.Exit != 0 {
					return errors.New(out.String())
				}
				return nil
			})
		})
	}
}

// TestUserDatabase has userdbctl ask for the users and groups of a machine.
func TestUserDatabase(t *testing.T) {
	t.Parallel()
	h := host.Boot(t, host.Config{Suite: host.Trixie, Clients: true})
	h.BusyboxTree(t, "bb")
	h.Start(t, "systemd-nspawn", "-q", "-U", "-M", "bb", "sleep", "1000000")
	waitMachine(t, h, "bb")
	leader := strings.TrimSpace(h.MustRun(t, "machinectl", "show", "bb", "-p", "Leader", "--value"))
	uid := strings.TrimSpace(h.MustRun(t, "stat", "-c", "%u", "/proc/"+leader))
	for _, c := range []struct {
		args string
		exit int
		want string
	}{
		{"user vu-bb-0", 0, `Real Name: UID 0 of Container bb`},
		{"user vu-bb-0", 0, `Disposition: container`},
		{"user " + uid, 0, `User name: vu-bb-0`},
		{"group vg-bb-7", 0, `Description: GID 7 of Container bb`},
		{"group " + uid, 0, `Group name: vg-bb-0`},
		{"user vu-bb-0 --json=short", 0, `"service":"io.systemd.Machine"`},
		{"user vu-nope-0", 1, ``},
		{"user vu-bb-x", 1, ``},
		{"group vg-bb-70000", 1, ``},
		{"services", 0, `io\.systemd\.Machine .*yes`},
		{"user", 0, `root`},
		{"groups-of-user vu-bb-0", 0, ``},
	} {
		r := h.Try("sh", "-c", "userdbctl --no-pager "+c.args)
		if r.Exit != c.exit {
			t.Errorf("exit %d: %v", c.exit, r)
		}
		match(t, r.Output(), c.want)
	}
}
