//go:build integration

package bench

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// other runtimes are shown beside; they promise less than a machine, so there is
// no limit to keep.
const (
	crun  host.Impl = "crun"
	runc  host.Impl = "runc"
	bwrap host.Impl = "bwrap"
)

// rounds is how often each of two programs is timed, in turns, so that what else
// the machine does falls on both.
const rounds = 7

// timed reports the median time of a command in the host, in ms, of each
// program, run in turns. after, untimed, takes away what the command left.
func timed(b *testing.B, h *host.Host, name string, commands map[host.Impl]string, after string) {
	b.Helper()
	const script = `s=$(date +%%s%%N); %s >/dev/null || exit 1; e=$(date +%%s%%N); { %s; } >/dev/null 2>&1; echo $((e-s))`
	took := map[host.Impl][]float64{}
	for range rounds {
		for impl, command := range commands {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
			r := h.Run(ctx, "sh", "-c", fmt.Sprintf(script, command, cmp.Or(after, ":")))
			cancel()
			if r.Exit != 0 {
				b.Fatal(r)
			}
			ns, err := strconv.ParseFloat(strings.TrimSpace(r.Stdout), 64)
			if err != nil {
				b.Fatal(err)
			}
			took[impl] = append(took[impl], ns/1e6)
		}
	}
	for impl, all := range took {
		slices.Sort(all)
		record(b, name, impl, all[len(all)/2])
		b.ReportMetric(all[len(all)/2], strings.ReplaceAll(name, " ", "_")+"/"+string(impl)+"-ms")
	}
}

// manyFiles is the size of the big tree.
const manyFiles = 300_000

// BenchmarkManyFiles is the start of `true` in a tree of 300,000 files on ext4:
// as it is, with a user namespace, and in an ephemeral copy, in ms.
func BenchmarkManyFiles(b *testing.B) {
	h := bench(b)
	tree := h.BusyboxTree(b, "big")
	dir := filepath.Join(h.Machines(), "big", "srv")
	for i := range manyFiles / 1000 {
		d := filepath.Join(dir, strconv.Itoa(i))
		if err := os.MkdirAll(d, 0o755); err != nil {
			b.Fatal(err)
		}
		for j := range 1000 {
			if err := os.WriteFile(filepath.Join(d, strconv.Itoa(j)), nil, 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	const options = " -q --register=no --keep-unit --pipe -D "
	ours := func(more string) map[host.Impl]string {
		return map[host.Impl]string{host.Ours: "systemd-nspawn" + options + tree + more + " true"}
	}
	timed(b, h, "300,000 files", ours(""), "")
	timed(b, h, "300,000 files, -U", ours(" -U"), "")
	timed(b, h, "300,000 files, --ephemeral", ours(" -x"), "")
	with, without := value("300,000 files, -U", host.Ours), value("300,000 files", host.Ours)
	const most = 10 // ms
	if with-without > most {
		b.Errorf("-U costs %.1f ms, at most %d", with-without, most)
	}
	if x := value("300,000 files, --ephemeral", host.Ours); x > 150 {
		b.Errorf("--ephemeral takes %.1f ms, at most 150", x)
	}
}

// BenchmarkBoot is the time from the spawner's start to READY=1 of the Debian
// in the machine, in ms.
func BenchmarkBoot(b *testing.B) {
	h := bench(b)
	programs := map[host.Impl]string{host.Ours: "/usr/bin/systemd-nspawn", host.Stock: h.Stock("systemd-nspawn")}
	commands := map[host.Impl]string{}
	for impl, program := range programs {
		tree := h.OSTree(b, "deb-"+string(impl))
		commands[impl] = "u=boot-$$; systemd-run -q --collect --unit=$u -p Type=notify -p NotifyAccess=all -p Delegate=yes " +
			program + " -q -b --notify-ready=yes --register=no --keep-unit --private-network -U -D " + tree
	}
	timed(b, h, "boot of Debian to READY", commands, "systemctl kill -s KILL $u; while systemctl -q is-active $u; do :; done")
}

// BenchmarkOthers is `true` in the same tree by programs that do less.
func BenchmarkOthers(b *testing.B) {
	h := bench(b)
	tree := h.BusyboxTree(b, "bb")
	h.Shell(b, `mkdir -p /var/tmp/bundle && cd /var/tmp/bundle && crun spec && sed -i 's/"terminal": true/"terminal": false/; s/"sh"/"true"/; s|"path": "rootfs"|"path": "`+tree+`"|' config.json`)
	commands := map[host.Impl]string{
		host.Ours:  "systemd-nspawn -q --register=no --keep-unit --pipe -D " + tree + " true",
		host.Stock: h.Stock("systemd-nspawn") + " -q --register=no --keep-unit --pipe -D " + tree + " true",
		crun:       "crun run -b /var/tmp/bundle c",
		runc:       "runc run -b /var/tmp/bundle r",
		bwrap:      "bwrap --bind " + tree + " / --proc /proc --dev /dev --unshare-pid --unshare-ipc --unshare-uts true",
	}
	for impl, command := range commands {
		if r := h.Try("sh", "-c", command); r.Exit != 0 && impl != host.Ours && impl != host.Stock {
			b.Logf("%s does not run here: %s", impl, r.Stderr)
			delete(commands, impl)
		}
	}
	timed(b, h, "true beside others", commands, "")
}
