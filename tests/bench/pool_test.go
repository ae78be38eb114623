//go:build integration

package bench

import (
	"os/exec"
	"testing"

	"machined/tests/host"
)

// pools are file systems for /var/lib/machines by name, with the options of mkfs.
var pools = map[string][]string{
	"ext4":  {"-qF"},
	"btrfs": {"-qf"},
	"xfs":   {"-qf", "-m", "reflink=1"},
}

// freshPool puts a new file system on a loop device onto /var/lib/machines, in the place of
// an earlier one. A used one would not do: for minutes after inodes have been removed
// ext4 looks at each of them again whenever it makes a file, and whoever comes second
// pays for that. The file is not in the cache a second time (direct I/O).
func freshPool(b *testing.B, h *host.Host, fstype string) {
	b.Helper()
	dropPool(b, h)
	file := "/var/tmp/pool"
	h.Shell(b, "truncate -s 24G "+file)
	if out, err := exec.Command("mkfs."+fstype, append(pools[fstype], h.Path(file))...).CombinedOutput(); err != nil {
		b.Fatalf("mkfs.%s: %v: %s", fstype, err, out)
	}
	h.Shell(b, "mount -o loop "+file+" /var/lib/machines; losetup --direct-io=on $(findmnt -nvo SOURCE /var/lib/machines) || true")
}

// dropPool removes the file system that freshPool has made, if there is one.
func dropPool(b *testing.B, h *host.Host) {
	b.Helper()
	h.Shell(b, `[ -e /var/tmp/pool ] || exit 0
for n in /var/lib/machines/*; do mountpoint -q "$n" && umount "$n"; done
umount /var/lib/machines; rm /var/tmp/pool`)
}

// plantTree makes a tree of 1.1 GB in 50,000 files out of a Debian's archive,
// /var/tmp/deb.tar: its own and nine copies in /usr/share. dir exists and is empty.
func plantTree(b *testing.B, h *host.Host, dir string) {
	b.Helper()
	h.Shell(b, "cd "+dir+`; tar -xpf /var/tmp/deb.tar
for i in 1 2 3 4 5 6 7 8 9; do mkdir -p usr/share/copy$i; tar -C usr/share/copy$i -xpf /var/tmp/deb.tar; done; sync`)
}
