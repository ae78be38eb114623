//go:build integration

package bench

import (
	"fmt"
	"os"
	"testing"

	"machined/tests/host"
)

// stockImportd is the drop-in that puts stock's importd in the place of ours.
const stockImportd = "/run/systemd/system/systemd-importd.service.d/stock.conf"

func init() {
	for name, limit := range map[string]float64{
		"import-tar gzip": 0.6, "import-tar xz": 0.6, "export-tar gzip": 0.7, "export-tar plain": 0.7, "clone by copy": 0.5,
	} {
		limits[name] = limit
	}
}

// BenchmarkTransfers is a Debian tree imported, exported and cloned, in ms each,
// through stock's machinectl on both sides. Old copies are removed, and the disk
// is quiet, before the clock starts. What zstd takes has no counterpart in stock.
func BenchmarkTransfers(b *testing.B) {
	h := bench(b)
	h.OSTree(b, "deb")
	h.Shell(b, `cd /var/tmp && tar -C /var/lib/machines/deb --xattrs --acls -cf deb.tar . &&
gzip -k deb.tar && xz -k -T2 -1 deb.tar && zstd -q deb.tar`)
	client := h.Stock("machinectl")
	timed := func(b *testing.B, name string, impl host.Impl, before, command string) {
		b.Run(name+"/"+string(impl), func(b *testing.B) {
			total := 0.0
			for range b.N {
				text := h.Shell(b, fmt.Sprintf("%s; sync; s=$(date +%%s%%N); %s >/dev/null || exit 1; e=$(date +%%s%%N); echo $(( (e-s)/1000 ))", before, command))
				total += number(b, text) / 1000
			}
			record(b, name, impl, total/float64(b.N))
		})
	}
	for _, impl := range []host.Impl{host.Stock, host.Ours} {
		if impl == host.Stock {
			h.RunStockDaemon(b)
			h.WriteFile(b, stockImportd, "[Service]\nExecStart=\nExecStart="+h.Stock("systemd-importd")+"\n", 0o644)
		} else {
			h.RunOwnDaemon(b)
			if err := os.Remove(h.Path(stockImportd)); err != nil {
				b.Fatal(err)
			}
		}
		h.Shell(b, "systemctl daemon-reload; systemctl restart systemd-importd.service")
		for _, c := range []struct{ name, suffix string }{{"plain", ""}, {"gzip", ".gz"}, {"xz", ".xz"}, {"zstd", ".zst"}} {
			if impl == host.Stock && c.name == "zstd" {
				continue
			}
			timed(b, "import-tar "+c.name, impl, "rm -rf /var/lib/machines/imported", client+" -q import-tar /var/tmp/deb.tar"+c.suffix+" imported")
		}
		for name, format := range map[string]string{"plain": "uncompressed", "gzip": "gzip"} {
			timed(b, "export-tar "+name, impl, "rm -f /var/tmp/out", client+" -q --format="+format+" export-tar deb /var/tmp/out")
		}
		// Each has a new name: ext4 is slow to make files for some time after as many
		// have been removed, and the one who comes second would pay for that.
		timed(b, "clone by copy", impl, "new=cloned-$(date +%s%N)", client+" -q clone deb $new")
	}
}
