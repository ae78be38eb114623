//go:build integration

package bench

import (
	"fmt"
	"os/exec"
	"testing"

	"machined/tests/host"
)

func init() {
	limits["clone on btrfs"], limits["clone on xfs"] = 1.0, 1.0
}

// BenchmarkClone is a Debian tree cloned on a file system of each kind, in ms each,
// through stock's machinectl on both sides; ours with --overlay has no counterpart,
// and 20 ms on ext4. Each clone has a new name, and the disk is quiet before.
func BenchmarkClone(b *testing.B) {
	for _, fs := range [][]string{{"ext4", "-qF"}, {"btrfs", "-qf"}, {"xfs", "-qf", "-m", "reflink=1"}} {
		fstype := fs[0]
		h := bench(b)
		h.OSTree(b, "deb")
		file := "/var/tmp/pool"
		h.Shell(b, "tar -C /var/lib/machines/deb -cf /var/tmp/deb.tar .; truncate -s 6G "+file)
		if out, err := exec.Command("mkfs."+fstype, append(fs[1:], h.Path(file))...).CombinedOutput(); err != nil {
			b.Fatalf("mkfs.%s: %v: %s", fstype, err, out)
		}
		h.Shell(b, "mount -o loop "+file+" /var/lib/machines; cd /var/lib/machines; "+
			map[bool]string{true: "btrfs subvolume create deb", false: "mkdir deb"}[fstype == "btrfs"]+" >/dev/null; tar -C deb -xf /var/tmp/deb.tar")
		for _, impl := range []host.Impl{host.Stock, host.Ours} {
			if impl == host.Stock {
				h.RunStockDaemon(b)
			} else {
				h.RunOwnDaemon(b)
			}
			cloneTime(b, h, "clone on "+fstype, impl, h.Stock("machinectl")+" clone deb")
		}
		if fstype == "ext4" {
			cloneTime(b, h, "clone --overlay on ext4", host.Ours, "machinectl --overlay clone deb")
			h.Shell(b, "for n in /var/lib/machines/*; do mountpoint -q $n && umount $n; done; true")
		}
		h.Shell(b, "umount /var/lib/machines; rm "+file)
	}
}

func cloneTime(b *testing.B, h *host.Host, name string, impl host.Impl, command string) {
	b.Run(name+"/"+string(impl), func(b *testing.B) {
		total := 0.0
		for range b.N {
			text := h.Shell(b, fmt.Sprintf("new=c$(date +%%s%%N); sync; s=$(date +%%s%%N); %s $new >/dev/null || exit 1; e=$(date +%%s%%N); echo $(( (e-s)/1000 ))", command))
			total += number(b, text) / 1000
		}
		b.ReportMetric(total/float64(b.N), "ms/clone")
		record(b, name, impl, total/float64(b.N))
	})
}
