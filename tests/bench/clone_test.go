//go:build integration

package bench

import (
	"testing"

	"machined/tests/host"
)

// BenchmarkClone is a tree of 1.1 GB cloned on a file system of each kind,
// through stock's machinectl on both sides; ours with --overlay has no counterpart,
// and 20 ms on ext4. Each clone has a new name, and the disk is quiet before.
func BenchmarkClone(b *testing.B) {
	h := bench(b, host.Bookworm)
	h.OSTree(b, "deb")
	h.Shell(b, "tar -C /var/lib/machines/deb --xattrs --acls -cf /var/tmp/deb.tar .")
	b.Cleanup(func() { dropPool(b, h) })
	for fstype := range pools {
		freshPool(b, h, fstype)
		h.Shell(b, "cd /var/lib/machines; "+map[bool]string{true: "btrfs subvolume create big", false: "mkdir big"}[fstype == "btrfs"]+" >/dev/null")
		plantTree(b, h, "/var/lib/machines/big")
		clone := func(client string) timedCommand {
			return timedCommand{Argv: []string{"sh", "-c", "exec " + client + " clone big c" + now}, Warm: "machinectl list-images >/dev/null", Before: settle}
		}
		each := 1
		if fstype == "btrfs" { // milliseconds, which one run says nothing of
			each = 9
		}
		race(b, "clone on "+fstype, 3, each,
			runner{impl: host.Stock, h: h, timedCommand: clone(h.Stock("machinectl")), ready: func() { h.RunStockDaemon(b) }},
			runner{impl: host.Ours, h: h, timedCommand: clone(h.Stock("machinectl")), ready: func() { h.RunOwnDaemon(b) }})
		if fstype == "ext4" {
			race(b, "clone --overlay on ext4", 1, 9, runner{impl: host.Ours, h: h, timedCommand: clone("machinectl --overlay")})
		}
	}
}
