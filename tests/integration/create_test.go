//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// fakeDebootstrap stands for debootstrap, which would need the network: it has its
// command line, and does what the release says.
const fakeDebootstrap = `#!/bin/sh
for release in "$@"; do case $release in -*) shift ;; *) break ;; esac; done
release=$1 dir=$2
echo "I: Retrieving $release"
mkdir -p $dir/usr/lib $dir/etc
echo ID=$release >$dir/usr/lib/os-release; hostname >$dir/etc/hostname; echo 0123456789abcdef0123456789abcdef >$dir/etc/machine-id
mknod $dir/zero c 1 5 && chown 5:6 $dir/zero && mount -t tmpfs tmpfs /mnt && touch /mnt/x || exit 3
! touch /usr/escaped 2>/dev/null || exit 4
case $release in
	broken) echo "E: Failed getting release file" >&2; exit 1 ;;
	empty) rm -rf $dir/usr $dir/etc; exit 0 ;;
	slow) echo "I: waiting"; sleep 1000 & sleep 1000 ;;
esac
echo "I: Base system installed successfully."
`

// TestCreateImage makes images of distributions, and breaks that off.
func TestCreateImage(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		refused := func(text string, args ...string) {
			t.Helper()
			r := h.Try(append([]string{"machinectl"}, args...)...)
			if r.Exit != 1 || !strings.Contains(r.Stderr, text) {
				t.Errorf("%v: got %v, want %q", args, r, text)
			}
		}
		refused("to make debian install mmdebstrap or debootstrap", "create", "deb", "--from=debian:trixie")
		refused("to make arch install pacstrap (package arch-install-scripts)", "create", "deb", "--from=arch")
		refused("no such file", "create", "deb", "--from=docker-archive:/nonexistent")
		refused("There is no file file:///nonexistent.tar.xz", "create", "deb", "--verify=no", "--from=file:///nonexistent.tar.xz")
		refused("--mirror= is for distributions", "create", "deb", "--from=oci:/x", "--mirror=http://x")
		h.WriteFile(t, "/usr/sbin/debootstrap", fakeDebootstrap, 0o755)
		before := snapshot(t, h)
		r := h.Try("machinectl", "create", "deb", "--from=debian:trixie")
		if r.Exit != 0 {
			t.Fatal(r)
		}
		match(t, r.Stderr, `^I: Retrieving trixie$`, `^I: Base system installed successfully\.$`, `^Created image 'deb' from debian:trixie\.$`)
		match(t, h.MustRun(t, "machinectl", "image-status", "deb", "--no-pager"), `^\s+Type: directory$`, `^\s+Hostname: deb$`, `^\s+RO: writable$`)
		h.Shell(t, "cd /var/lib/machines/deb; test ! -s etc/machine-id -a -c zero -a $(stat -c %u zero) = 5; test ! -e /mnt/x")

		refused("File exists", "create", "deb", "--from=debian:trixie")
		refused("E: Failed getting release file", "create", "bad", "--from=debian:broken")
		refused("no system is in the image", "create", "bad", "--from=debian:empty")
		refused("the distributions are", "create", "bad", "--from=beos:5")
		refused("a release has", "create", "bad", "--from=debian:-x")
		refused("--from=", "create", "bad")
		refused("Image name 'a/b' is invalid.", "create", "a/b", "--from=debian:trixie")
		if r := h.TryAs("alice", "machinectl", "--no-ask-password", "create", "bad", "--from=debian:trixie"); r.Exit == 0 || !strings.Contains(r.Stderr, "uthentication required") {
			t.Errorf("a user creates images: %v", r)
		}
		p := h.Start(t, "machinectl", "create", "slow", "--from=debian:slow")
		p.Expect(t, "I: waiting")
		h.Shell(t, "pkill -INT -x machinectl")
		p.Wait(t)
		host.Eventually(t, 20*time.Second, func() error {
			if left := h.Shell(t, "ls -A /var/lib/machines | grep -v -x deb || true; pgrep -a sleep || true; systemctl list-units --all --no-legend 'machined-create*'"); strings.TrimSpace(left) != "" {
				return fmt.Errorf("left: %s", left)
			}
			return nil
		})
		unchanged(t, h, before)
	})
}
