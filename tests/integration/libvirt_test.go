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
