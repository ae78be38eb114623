//go:build integration

package integration

import (
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// TestOverlayClone: a clone that shares files by overlayfs takes no time, and is
// an image like any other.
func TestOverlayClone(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		h.OSTree(t, "deb")
		run := func(args ...string) string {
			t.Helper()
			return h.MustRun(t, append([]string{"machinectl", "--no-pager"}, args...)...)
		}
		want := treeList(t, h, "/var/lib/machines/deb")
		var took [3]time.Duration
		for i, name := range []string{"one", "two", "three"} {
			conn := h.Bus(t)
			start := time.Now()
			if err := callOwn(conn, "CloneImage", "deb", name, overlayOptions()).Err; err != nil {
				t.Fatal(err)
			}
			took[i] = time.Since(start)
		}
		t.Logf("clones took %v", took)
		for _, name := range []string{"deb", "one", "two", "three"} {
			if got := strings.TrimSpace(h.MustRun(t, "findmnt", "-n", "-o", "FSTYPE", "/var/lib/machines/"+name)); got != "overlay" {
				t.Errorf("%s is %q, want an overlay", name, got)
			}
		}
		if got := treeList(t, h, "/var/lib/machines/three"); got != want {
			t.Errorf("clone differs:\n%s---\n%s", linesOnlyIn(got, want), linesOnlyIn(want, got))
		}
		h.Shell(t, "chroot /var/lib/machines/one sh -c 'echo changed >/etc/motd; rm /etc/issue'; test -e /var/lib/machines/two/etc/issue -a -e /var/lib/machines/deb/etc/issue")
		for _, client := range clients(h) {
			match(t, h.MustRun(t, client, "list-images", "--no-pager"), `^deb +directory +no`, `^one +directory +no`)
			match(t, h.MustRun(t, client, "image-status", "one", "--no-pager"), `^\s+OS: Debian`, `^\s+RO: writable$`)
		}
		if out := h.MustRun(t, "machinectl", "list-images", "-a", "--no-pager"); strings.Contains(out, "machined") {
			t.Errorf("what is no image is listed: %s", out)
		}

		// Both run side by side, from the template unit with its user namespace.
		start := time.Now()
		run("start", "one", "deb")
		waitRunning(t, h, "one")
		waitRunning(t, h, "deb")
		t.Logf("both were up after %v", time.Since(start))
		match(t, h.MustRun(t, "systemd-run", "-q", "-M", "one", "--pipe", "--wait", "/bin/cat", "/etc/motd"), `^changed$`)
		for text, args := range map[string][]string{"busy": {"remove", "one"}, " busy": {"rename", "one", "four"}, "busy ": {"flatten", "one"}} {
			if r := h.Try(append([]string{"machinectl"}, args...)...); r.Exit == 0 || !strings.Contains(r.Stderr, strings.TrimSpace(text)) {
				t.Errorf("%v of a running image: %v", args, r)
			}
		}
		h.MustRun(t, "machinectl", "copy-to", "one", "/etc/debian_version", "/root/copied")
		run("poweroff", "one", "deb")
		waitGone(t, h)
		h.Shell(t, "test -s /var/lib/machines/one/root/copied -a ! -e /var/lib/machines/deb/root/copied")

		// A host that has just booted: the spawner mounts what it is to run, machined the rest.
		h.Shell(t, "systemctl stop systemd-machined; umount /var/lib/machines/one /var/lib/machines/two /var/lib/machines/three /var/lib/machines/deb")
		match(t, h.MustRun(t, "systemd-nspawn", "-q", "--register=no", "--pipe", "-M", "one", "cat", "/etc/motd"), `^changed$`)
		h.MustRun(t, "systemctl", "start", "machined-images.service")
		h.Shell(t, "test -e /var/lib/machines/two/etc/issue -a -e /var/lib/machines/deb/etc/issue")

		run("export-tar", "one", "/var/tmp/one.tar")
		if out := h.Shell(t, "tar -tf /var/tmp/one.tar | grep -c -e '^\\./etc/motd' -e '^\\./usr/bin/dpkg$'"); strings.TrimSpace(out) != "2" {
			t.Errorf("export of an overlay clone lacks files: %s", out)
		}
		run("remove", "deb")
		run("rename", "one", "uno")
		run("read-only", "uno")
		if r := h.Try("touch", "/var/lib/machines/uno/x"); r.Exit == 0 {
			t.Error("a read-only overlay clone can be written")
		}
		run("read-only", "uno", "no")
		run("flatten", "uno")
		run("remove", "two", "three")
		if out := h.Shell(t, "ls /var/lib/machines/machined.v/bases /var/lib/machines/machined.v/overlays"); strings.Contains(out, "0") {
			t.Errorf("layers are left: %s", out)
		}
		h.Shell(t, "test $(cat /var/lib/machines/uno/etc/motd) = changed -a -e /var/lib/machines/uno/usr/bin/dpkg")
		unchanged(t, h, before)
	})
}
