//go:build integration

package bench

import (
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"machined/tests/host"
)

// stockImportd is the drop-in that puts stock's importd in the place of ours.
const stockImportd = "/run/systemd/system/systemd-importd.service.d/stock.conf"

// importdUnit is where the kernel tells of all processes of a transfer.
const importdUnit = "system.slice/systemd-importd.service"

// importdMemory is the limit of what importd, its workers and their programs may
// have in RAM together, in MiB.
const importdMemory = 200

// transferBench measures one kind of transfer after another through stock's machinectl.
type transferBench struct {
	*testing.B
	h   *host.Host
	use map[host.Impl]func() // puts the programs in place
	// unit is whose memory is looked at.
	unit string
}

// newTransferBench boots a host with a Debian's archive in /var/tmp/deb.tar.
func newTransferBench(b *testing.B) *transferBench {
	h := bench(b, host.Bookworm)
	h.OSTree(b, "deb")
	h.Shell(b, "tar -C /var/lib/machines/deb --xattrs --acls -cf /var/tmp/deb.tar .")
	b.Cleanup(func() { dropPool(b, h) })
	return &transferBench{B: b, h: h, unit: importdUnit, use: map[host.Impl]func(){
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
	}}
}

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

// now is a name that nothing has had before, for the shell in the host.
const now = "$(date +%s%N)"

// race measures a command of stock's machinectl, with what importd takes of the
// memory meanwhile. The disk is quiet before the clock starts.
func (t *transferBench) race(name, words string, impls ...host.Impl) {
	t.Helper()
	c := timedCommand{
		Argv: []string{"sh", "-c", "exec " + t.h.Stock("machinectl") + " -q " + words},
		Warm: t.h.Stock("machinectl") + " list-transfers >/dev/null", Before: settle, Unit: t.unit,
	}
	var runners []runner
	for _, impl := range impls {
		runners = append(runners, runner{impl: impl, h: t.h, timedCommand: c, ready: t.use[impl]})
	}
	race(t.B, name, 3, 1, runners...)
}

// pack compresses the archive of the tree into another file, with a suffix.
func (t *transferBench) pack(suffix, command string) {
	t.Helper()
	t.h.Shell(t.B, "cd /var/tmp; "+command+" <big.tar >big.tar"+suffix)
}

// plantArchive makes /var/tmp/big.tar, of the tree that is imported.
func (t *transferBench) plantArchive() {
	t.Helper()
	freshPool(t.B, t.h, "ext4")
	t.h.Shell(t.B, "mkdir /var/lib/machines/big")
	plantTree(t.B, t.h, "/var/lib/machines/big")
	t.h.Shell(t.B, "tar -C /var/lib/machines/big --xattrs --acls -cf /var/tmp/big.tar .")
}

// BenchmarkImport is a tree of 1.1 GB imported from an archive, into a new file system
// for each compression and under a new name each time. xz has blocks, as `xz -T` makes
// them: a stream without is decoded by one thread, whoever does it, and then xz takes 13 s of the
// 15 that stock's import does. Stock 252 reads no zstd.
func BenchmarkImport(b *testing.B) {
	t := newTransferBench(b)
	t.plantArchive()
	for _, c := range []struct {
		name, suffix, command string
		impls                 []host.Impl
	}{
		{"plain", "", "", []host.Impl{host.Stock, host.Ours}},
		{"gzip", ".gz", "gzip", []host.Impl{host.Stock, host.Ours}},
		{"xz", ".xz", "xz -T2 -1", []host.Impl{host.Stock, host.Ours}},
		{"zstd", ".zst", "zstd -q -T2", []host.Impl{host.Ours}},
	} {
		if c.suffix != "" {
			t.pack(c.suffix, c.command)
		}
		freshPool(b, t.h, "ext4")
		t.race("import-tar "+c.name, "import-tar /var/tmp/big.tar"+c.suffix+" i"+now, c.impls...)
	}
}

// BenchmarkPull is the same tree pulled from a server in the host, which has
// nothing to do but to send it. Each pull has a URL of its own, so that nobody knows it already.
func BenchmarkPull(b *testing.B) {
	t := newTransferBench(b)
	t.plantArchive()
	t.pack(".gz", "gzip")
	freshPool(b, t.h, "ext4")
	t.h.Start(b, "env", "BENCH_CLIENT=serve", clientPath).Expect(b, "serving")
	t.race("pull-tar gzip", "--verify=no pull-tar http://127.0.0.1:8000/"+now+"/big.tar.gz p"+now, host.Stock, host.Ours)
}

// serve is the server in the host: any path names the archive's file in /var/tmp.
func serve() error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{any}/big.tar.gz", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, "/var/tmp/big.tar.gz")
	})
	server := &http.Server{Addr: "127.0.0.1:8000", Handler: mux, ReadHeaderTimeout: time.Minute}
	time.AfterFunc(100*time.Millisecond, func() { fmt.Println("serving") })
	return server.ListenAndServe()
}

// BenchmarkExport is the tree exported to a file, with a new name each time.
func BenchmarkExport(b *testing.B) {
	t := newTransferBench(b)
	freshPool(b, t.h, "ext4")
	t.h.Shell(b, "mkdir /var/lib/machines/big")
	plantTree(b, t.h, "/var/lib/machines/big")
	for _, c := range [][2]string{{"plain", "uncompressed"}, {"gzip", "gzip"}} {
		t.race("export-tar "+c[0], "--format="+c[1]+" export-tar big /var/lib/machines/.export-"+now, host.Stock, host.Ours)
	}
}

// BenchmarkCopyTo is 1 GB in 10,000 files copied into a machine.
func BenchmarkCopyTo(b *testing.B) {
	t := newTransferBench(b)
	freshPool(b, t.h, "ext4")
	t.h.Shell(b, `mkdir /var/tmp/many; cd /var/tmp/many
for i in $(seq 100); do mkdir $i; (cd $i; head -c 10700000 /dev/urandom | split -b 107000 -); done; sync`)
	t.h.BusyboxTree(b, "bb")
	t.h.Start(b, "systemd-nspawn", "-q", "-M", "bb", "-D", "/var/lib/machines/bb", "sleep", "1000000")
	// Registered for sure before the first daemon goes.
	t.h.Shell(b, "until [ -e /run/systemd/machines/bb ] && machinectl status bb >/dev/null 2>&1; do sleep 0.1; done; sleep 1")
	t.unit = "" // machined copies
	t.race("copy-to", "copy-to bb /var/tmp/many /many-"+now, host.Stock, host.Ours)
	t.h.Shell(b, "machinectl terminate bb; while machinectl status bb >/dev/null 2>&1; do sleep 0.1; done")
}
