//go:build integration

package integration

import (
	"strings"
	"testing"

	"machined/tests/host"
)

// TestPoolLimit: the limit of a pool holds for whatever makes images, in the midst of
// it and at its start; what fails of it leaves nothing, and it can be lifted.
func TestPoolLimit(t *testing.T) {
	ours(t) // stock keeps to it, too, but cannot lift it where it has been reached
	t.Parallel()
	h := host.Boot(t, host.Config{Suite: host.Trixie})
	mountPool(t, h, "btrfs")
	h.MustRun(t, "mount", "-o", "remount,commit=1", "/var/lib/machines") // it cleans up as often
	h.Shell(t, `mkdir -p /srv/tree/usr/lib /var/lib/machines/plain; cd /srv; echo ID=x >tree/usr/lib/os-release
for i in $(seq 16); do head -c 1000000 /dev/urandom >tree/usr/$i; done; cp -a tree/usr /var/lib/machines/plain
tar -cf tree.tar -C tree .; tar -czf tree.tar.gz -C tree .; cat tree/usr/? tree/usr/1? >disk.raw
machinectl set-limit 30M`) // which turns quota on
	list := func() string { return h.Shell(t, "ls -A /var/lib/machines") }
	refused := func(argv ...string) {
		t.Helper()
		before := list()
		r := h.Try(argv...)
		if r.Exit != 1 || !strings.Contains(strings.ToLower(r.Output()), "quota exceeded") {
			t.Errorf("with a limit that is too small: %v", r)
		}
		if after := list(); after != before {
			t.Errorf("%v left %s", argv, linesOnlyIn(after, before))
		}
	}
	writes := [][]string{
		{"machinectl", "import-tar", "/srv/tree.tar", "a"},
		{"machinectl", "import-raw", "/srv/disk.raw", "b"},
		{"machinectl", "import-fs", "/srv/tree", "c"},
		{"machinectl", "pull-tar", "--verify=no", "file:///srv/tree.tar.gz", "d"},
		{"machinectl", "pull-raw", "--verify=no", "file:///srv/disk.raw", "e"},
		{"machinectl", "clone", "plain", "f"},
	}
	for _, argv := range writes[:5] { // the clone shares what it has
		refused(argv...) // there is room for a part of it
	}
	h.Shell(t, "sync; btrfs subvolume sync /var/lib/machines >/dev/null") // what was removed counts until then
	h.MustRun(t, "machinectl", "set-limit", "40M")
	h.MustRun(t, "machinectl", "import-tar", "/srv/tree.tar", "one") // with plain, 32 MB
	h.MustRun(t, "machinectl", "clone", "one", "two")                // which shares all it has
	h.MustRun(t, "machinectl", "set-limit", "one", "1G")
	match(t, h.MustRun(t, "machinectl", "show-image", "one", "-p", "Limit"), `^Limit=1073741824$`)
	if r := h.Try("sh", "-c", "cd /var/lib/machines/one; dd if=/dev/zero of=big bs=64k count=1000 && sync -f ."); r.Exit == 0 {
		t.Errorf("what is written in an image does not count: %v", r)
	}
	h.MustRun(t, "sync")
	for _, argv := range writes {
		refused(argv...) // there is room for nothing
	}
	h.MustRun(t, "machinectl", "set-limit", "50M") // and yet it can be lifted
	h.MustRun(t, "machinectl", "set-limit", "40M")
	h.MustRun(t, "machinectl", "remove", "one", "two")
	h.MustRun(t, "machinectl", "set-limit", "infinity")
	h.MustRun(t, "machinectl", "import-tar", "/srv/tree.tar", "three")

	// An export is bound by what it is written to.
	h.Shell(t, "cd /var/lib/machines; btrfs -q subvolume create out >/dev/null; btrfs qgroup limit 3M out")
	r := h.Try("machinectl", "export-tar", "three", "/var/lib/machines/out/three.tar")
	if r.Exit != 1 || !strings.Contains(r.Stderr, `export "three": pack "./usr/`) || !strings.Contains(r.Stderr, "quota exceeded") {
		t.Errorf("export: %v", r)
	}
	h.MustRun(t, "machinectl", "remove", "three", "plain")
	// Groups of subvolumes that are gone stay until the file system has cleaned up, and
	// go with the next import.
	groups := h.Shell(t, `sync; btrfs subvolume sync /var/lib/machines >/dev/null; machinectl -q import-tar /srv/tree.tar last >&2
btrfs qgroup show /var/lib/machines | awk '$1 ~ /^254/ {print $1}'; btrfs subvolume list /var/lib/machines | awk '$NF == "last" {print "254/" $2}'`)
	if have := strings.Fields(groups); len(have) != 2 || have[0] != have[1] {
		t.Errorf("quota groups of images, and that of the only image: %q", have)
	}
}
