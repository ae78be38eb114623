//go:build integration

package integration

import (
	"strings"
	"testing"

	"machined/tests/host"
)

// libsystemdWants is what testdata/sdclient.c prints, with the same words
// wherever stock's machined is, too.
const libsystemdWants = `class of 'deb': container
class of '.host': host
class of 'nope': ENXIO
class of '../x': EINVAL
class of '': EINVAL
ifindices of 'deb': 1, the first is one
ifindices of '.host': EINVAL
ifindices of 'nope': ENXIO
machine of the leader: deb, unit systemd-nspawn@deb.service, slice machine.slice
machine of PID 1: ENOENT, unit init.scope, slice -.slice
machine of ourselves: ENODATA, unit ENODATA, slice -.slice
OpenMachinePTY: terminal, path is its own
OpenMachinePTY: close-on-exec 1, non-blocking 0
OpenMachineShell: terminal, path is its own
OpenMachineShell: close-on-exec 1, non-blocking 0
shell: TTY
shell: hello
shell: root
OpenMachineLogin: terminal, path is its own
OpenMachineLogin: close-on-exec 1, non-blocking 0
OpenMachinePTY: terminal, path is its own
OpenMachinePTY: close-on-exec 1, non-blocking 0
OpenMachinePTY: org.freedesktop.machine1.NoSuchMachine: No machine 'nope' known
root directory of deb: is the leader's, flags read directory, os-release 'OS'
root directory of .host: is the leader's, flags read directory, os-release 'OS'
MachineNew made-1 /org/freedesktop/machine1/machine/made_2d1
class of 'made-1': container
CreateMachine made-1: /org/freedesktop/machine1/machine/made_2d1, after MachineNew
monitor after creation: told
machine of the child: made-1, unit machine-made\x2d1.scope, slice machine.slice
ifindices of 'made-1': 0
MachineRemoved made-1 /org/freedesktop/machine1/machine/made_2d1
class of 'made-1': ENXIO
end noticed: in 100 ms
monitor after end: told
class of 'made-1': ENXIO
`

// TestLibsystemd: a program linked to the host's libsystemd learns of machines
// by sd-login(3), and calls methods that pass descriptors by sd-bus(3).
func TestLibsystemd(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.Compile(t, "testdata/sdclient.c", "/usr/local/bin/sdclient", "-lsystemd")
		bootMachine(t, h, "deb")
		r := h.Try("sdclient", "deb", "made-1")
		if r.Exit != 0 {
			t.Error(r)
		}
		var got, names []string
		for line := range strings.Lines(r.Stdout) {
			line = strings.TrimSuffix(line, "\n")
			switch {
			case strings.HasPrefix(line, "names:"):
				names = append(names, line)
			case strings.HasPrefix(line, "shell: /dev/pts/"):
				got = append(got, "shell: TTY")
			case strings.HasPrefix(line, "root directory"):
				before, release, _ := strings.Cut(line, "os-release ")
				if !strings.Contains(release, "Debian GNU/Linux "+version(h.Suite)) {
					t.Errorf("os-release: %s", line)
				}
				got = append(got, before+"os-release 'OS'")
			case line != "end":
				got = append(got, line)
			}
		}
		if text := strings.Join(got, "\n") + "\n"; text != libsystemdWants {
			t.Errorf("got\n%s", linesOnlyIn(text, libsystemdWants))
			t.Errorf("want\n%s", linesOnlyIn(libsystemdWants, text))
		}
		if len(names) != 3 || names[0] != "names: deb" || !strings.Contains(names[1], " made-1") || names[2] != names[0] {
			t.Errorf("names of machines: %q", names)
		}
	})
}
