//go:build integration && mirror

// What is built from Debian's mirror, which takes minutes and the network: make mkosi.
package integration

import (
	"context"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// TestMkosi imports and boots what Debian's mkosi makes: an archive, and a disk with a
// partition table. Building them takes minutes.
func TestMkosi(t *testing.T) {
	host.NeedRoot(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	images := map[string]string{}
	for _, format := range []string{"tar", "disk"} {
		path, err := host.Mkosi(ctx, format)
		if err != nil {
			t.Fatal(err)
		}
		images[format] = path
	}
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		h.CopyIn(t, images["tar"], "/var/lib/machines/.image.tar")
		h.CopyIn(t, images["disk"], "/var/lib/machines/.image.raw.in")
		h.Shell(t, "cd /var/lib/machines; machinectl import-tar .image.tar mktar; machinectl import-raw .image.raw.in mkraw; rm .image.tar .image.raw.in")
		match(t, h.MustRun(t, "machinectl", "list-images", "--no-legend"), `^mktar +(directory|subvolume) `, `^mkraw +raw `)
		runsAndEnds(t, h, "mktar")
		runsAndEnds(t, h, "mkraw")
		unchanged(t, h, before)
	})
}

// TestCreateDebian makes Debian images by the real programs, from the mirror that this
// machine has, and boots them.
func TestCreateDebian(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		mirror := h.Mirror(t)
		for _, tool := range []string{"debootstrap", "mmdebstrap"} {
			t.Run(tool, func(t *testing.T) {
				h.Shell(t, "echo 'deb "+mirror+" "+string(h.Suite)+" main' >/etc/apt/sources.list; rm -f /etc/apt/sources.list.d/*; apt-get -qq update; apt-get -qqy --no-install-recommends install debian-archive-keyring wget "+tool)
				ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
				defer cancel()
				r := h.Run(ctx, "machinectl", "create", "deb", "--from=debian:trixie", "--mirror="+mirror)
				if r.Exit != 0 {
					t.Fatal(r)
				}
				match(t, r.Stderr, `^Created image 'deb' from debian:trixie\.$`)
				match(t, h.MustRun(t, "machinectl", "image-status", "deb", "--no-pager"), `^\s+OS: Debian GNU/Linux 13`, `^\s+Hostname: deb$|^\s+Type: directory$`)
				runsAndEnds(t, h, "deb")
				r = h.Run(ctx, "machinectl", "create", "deb", "--from=debian:nosuchrelease", "--mirror="+mirror)
				if r.Exit != 1 || !strings.Contains(r.Stderr, tool) {
					t.Errorf("a release that is not there: %v", r)
				}
				t.Log(r.Stderr)
			})
		}
	})
}
