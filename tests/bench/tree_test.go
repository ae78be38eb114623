//go:build integration

package bench

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"machined/tests/host"
)

// manyFiles is the size of the big tree.
const manyFiles = 300_000

// What a start in the big tree may take, in ms.
const (
	mostForUsers     = 10 // with user namespaces, more than without
	mostForEphemeral = 150
)

// BenchmarkManyFiles is the start of `true` in a tree of 300,000 files: as it is, with
// a user namespace, and in an ephemeral copy. Stock is no part of this: it changes the
// owner of each file, and copies each.
func BenchmarkManyFiles(b *testing.B) {
	h := bench(b, host.Bookworm)
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
	const plain, users, ephemeral = "300,000 files", "300,000 files, -U", "300,000 files, --ephemeral"
	// In turns: the difference of two of them is looked at.
	took := map[string][]float64{}
	for range 5 {
		for name, options := range map[string]string{plain: "", users: "-U ", ephemeral: "-x "} {
			r := runner{impl: host.Ours, h: h, timedCommand: command("systemd-nspawn -q --register=no --keep-unit --pipe " + options + "-D " + tree + " true")}
			r.Count = 4
			took[name] = append(took[name], r.time(b)...)
		}
	}
	for name, all := range took {
		record(name, "ms", host.Ours, all...)
	}
	// Of the faster ones: what else the machine does can only add, and differs by more than this.
	if d := result(users, host.Ours).p25 - result(plain, host.Ours).p25; d > mostForUsers {
		b.Errorf("-U costs %.1f ms, at most %d", d, mostForUsers)
	}
	if x := result(ephemeral, host.Ours).p50; x > mostForEphemeral {
		b.Errorf("--ephemeral takes %.1f ms, at most %d", x, mostForEphemeral)
	}
}
