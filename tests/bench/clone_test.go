//go:build integration

package bench

import (
	"os/exec"
	"testing"

	"machined/tests/host"
)

// BenchmarkClone is a Debian tree cloned on a file system of each kind,
// through stock's machinectl on both sides; ours with --overlay has no counterpart,
// and 20 ms on ext4. Each clone has a new name, and the disk is quiet before.
func BenchmarkClone(b *testing.B) {
	for _, fs := range [][]string{{"ext4", "-qF"}, {"btrfs", "-qf"}, {"xfs", "-qf", "-m", "reflink=1"}} {
		fstype := fs[0]
		h := bench(b, host.Bookworm)
		h.OSTree(b, "deb")
		file := "/var/tmp/pool"
		h.Shell(b, "tar -C /var/lib/machines/deb -cf /var/tmp/deb.tar .; truncate -s 6G "+file)
		if out, err := exec.Command("mkfs."+fstype, append(fs[1:], h.Path(file))...).CombinedOutput(); err != nil {
			b.Fatalf("mkfs.%s: %v: %s", fstype, err, out)
		}
		h.Shell(b, "mount -o loop "+file+" /var/lib/machines; cd /var/lib/machines; "+
			map[bool]string{true: "btrfs subvolume create deb", false: "mkdir deb"}[fstype == "btrfs"]+" >/dev/null; tar -C deb -xf /var/tmp/deb.tar")
		clone := func(client string) timedCommand {
			return timedCommand{Argv: []string{"sh", "-c", "exec " + client + " clone deb c$(date +%s%N)"}, Before: "sync"}
		}
		race(b, "clone on "+fstype, 2, 2,
			runner{impl: host.Stock, h: h, timedCommand: clone(h.Stock("machinectl")), ready: func() { h.RunStockDaemon(b) }},
			runner{impl: host.Ours, h: h, timedCommand: clone(h.Stock("machinectl")), ready: func() { h.RunOwnDaemon(b) }})
		if fstype == "ext4" {
			race(b, "clone --overlay on ext4", 1, 5, runner{impl: host.Ours, h: h, timedCommand: clone("machinectl --overlay")})
			h.Shell(b, "for n in /var/lib/machines/*; do mountpoint -q $n && umount $n; done; true")
		}
		h.Shell(b, "umount /var/lib/machines; rm "+file)
	}
}
