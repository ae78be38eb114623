//go:build integration

package integration

import (
	"strings"
	"testing"

	"machined/tests/host"
)

// runsAndEnds starts an image, waits until its system is up, and powers it off.
func runsAndEnds(t *testing.T, h *host.Host, name string) {
	t.Helper()
	h.MustRun(t, "machinectl", "start", name)
	waitRunning(t, h, name)
	if os := h.MustRun(t, "systemd-run", "-q", "--pipe", "--wait", "-M", name, "cat", "/etc/os-release"); !strings.Contains(os, "ID=debian") {
		t.Errorf("os-release: %s", os)
	}
	h.MustRun(t, "machinectl", "poweroff", name)
	waitGone(t, h)
	// The spawner says goodbye before it lets go of the image.
	h.MustRun(t, "systemctl", "stop", "systemd-nspawn@"+name)
	h.MustRun(t, "machinectl", "remove", name)
}

// TestDockerExport imports and boots an archive as docker export writes it: names
// without a dot before them, and what docker leaves in a container.
func TestDockerExport(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		h.OSTree(t, "tree")
		h.Shell(t, `cd /var/lib/machines/tree; touch .dockerenv; mkdir -p dev/pts dev/shm; : >dev/console; : >etc/hostname; : >etc/hosts; rm -f etc/resolv.conf etc/mtab; : >etc/resolv.conf; ln -s /proc/mounts etc/mtab
tar -cf ../exported.tar --numeric-owner $(ls -A); cd ..; machinectl remove tree; machinectl import-tar exported.tar app; rm exported.tar`)
		runsAndEnds(t, h, "app")
		unchanged(t, h, before)
	})
}
