//go:build integration

package bench

import (
	"os"
	"testing"

	"machined/tests/host"
)

// stockImportd is the drop-in that puts stock's importd in the place of ours.
const stockImportd = "/run/systemd/system/systemd-importd.service.d/stock.conf"

// workers is a script that gives importd its own workers: stock's has the suffix
// where ours is installed, and ours is importd itself.
func workers(suffix string) string {
	target := "systemd-importd"
	if suffix != "" {
		target = "systemd-$tool" + suffix
	}
	return "for tool in pull import import-fs export; do ln -sfn " + target + " /usr/lib/systemd/systemd-$tool; done; " +
		"systemctl daemon-reload; systemctl restart systemd-importd.service"
}

// BenchmarkTransfers is a Debian tree pulled, imported, exported and cloned, and
// 10,000 small files copied into a machine, through stock's machinectl on both sides. Old copies are removed, and the disk
// is quiet, before the clock starts. What zstd takes has no counterpart in stock.
func BenchmarkTransfers(b *testing.B) {
	h := bench(b, host.Bookworm)
	h.OSTree(b, "deb")
	h.Shell(b, `cd /var/tmp && tar -C /var/lib/machines/deb --xattrs --acls -cf deb.tar . &&
gzip -k deb.tar && xz -k -T2 -1 deb.tar && zstd -q deb.tar`)
	client := h.Stock("machinectl")
	use := map[host.Impl]func(){
		host.Stock: func() {
			h.RunStockDaemon(b)
			h.WriteFile(b, stockImportd, "[Service]\nExecStart=\nExecStart="+h.Stock("systemd-importd")+"\n", 0o644)
			h.Shell(b, workers(".distrib"))
		},
		host.Ours: func() {
			h.RunOwnDaemon(b)
			if err := os.Remove(h.Path(stockImportd)); err != nil && !os.IsNotExist(err) {
				b.Fatal(err)
			}
			h.Shell(b, workers(""))
		},
	}
	transfer := func(name, before, words string, impls ...host.Impl) {
		c := timedCommand{Argv: []string{"sh", "-c", "exec " + client + " -q " + words}, Before: before + "; sync"}
		var runners []runner
		for _, impl := range impls {
			runners = append(runners, runner{impl: impl, h: h, timedCommand: c, ready: use[impl]})
		}
		race(b, name, 2, 2, runners...)
	}
	const fresh = "rm -rf /var/lib/machines/imported"
	for name, suffix := range map[string]string{"plain": "", "gzip": ".gz", "xz": ".xz"} {
		transfer("import-tar "+name, fresh, "import-tar /var/tmp/deb.tar"+suffix+" imported", host.Stock, host.Ours)
	}
	h.Start(b, "python3", "-m", "http.server", "-d", "/var/tmp", "8000")
	transfer("pull-tar gzip", fresh+"; chattr -f -i /var/lib/machines/.tar-*; rm -rf /var/lib/machines/.tar-*",
		"--verify=no pull-tar http://127.0.0.1:8000/deb.tar.gz imported", host.Stock, host.Ours)
	transfer("import-tar zstd", fresh, "import-tar /var/tmp/deb.tar.zst imported", host.Ours)
	for name, format := range map[string]string{"plain": "uncompressed", "gzip": "gzip"} {
		transfer("export-tar "+name, "rm -f /var/tmp/out", "--format="+format+" export-tar deb /var/tmp/out", host.Stock, host.Ours)
	}
	// Each has a new name: ext4 is slow to make files for some time after as many
	// have been removed, and the one who comes second would pay for that.
	transfer("clone by copy", ":", "clone deb cloned-$(date +%s%N)", host.Stock, host.Ours)
	h.Shell(b, `python3 -c '
import os
for i in range(100):
    os.makedirs("/var/tmp/many/%d" % i)
    for j in range(100): open("/var/tmp/many/%d/%d" % (i, j), "wb").write(os.urandom(12000))'`)
	h.BusyboxTree(b, "bb")
	h.Start(b, "systemd-nspawn", "-q", "-M", "bb", "-D", "/var/lib/machines/bb", "sleep", "1000000")
	transfer("copy-to", "rm -rf /var/lib/machines/bb/many", "copy-to bb /var/tmp/many /many", host.Stock, host.Ours)
}
