//go:build integration

package integration

import (
	"regexp"
	"testing"

	"machined/tests/host"
)

// nspawnRow is one thing that a spawner does, as a script in the host.
type nspawnRow struct {
	name string
	// script runs in bash; $S is the spawner, $T a busybox tree, and run FUNC a
	// scratch directory $W that is empty at first.
	script string
	exit   int      // of the script
	out    []string // patterns (multi-line mode) in what it says
	not    []string // patterns that must not be there
	// stock is the first version of systemd that does this: 0 for all, 257 for
	// trixie's, never for none.
	stock int
}

// never is nspawnRow.stock of what only our spawner does.
const never = 9999

// stockVersion is the systemd version of a suite.
func stockVersion(s host.Suite) int {
	if s == host.Bookworm {
		return 252
	}
	return 257
}

// nspawnRows runs rows one after the other in h, and looks for leftovers at the end.
func nspawnRows(t *testing.T, h *host.Host, rows []nspawnRow) {
	t.Helper()
	h.BusyboxTree(t, "bb")
	before := snapshot(t, h)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if host.DefaultImpl() == host.Stock && stockVersion(h.Suite) < row.stock {
				t.Skip("stock has no such thing")
			}
			r := h.Try("bash", "-c", `
T=/var/lib/machines/bb; S="systemd-nspawn -q --register=no -D $T"; W=/var/tmp/work; rm -rf $W; mkdir -p $W; cd $W
exec </dev/null
`+row.script)
			if r.Exit != row.exit {
				t.Errorf("exit status: want %d, got %v", row.exit, r)
				return
			}
			for _, p := range row.out {
				if !regexp.MustCompile("(?m)" + p).MatchString(r.Output()) {
					t.Errorf("no match of %q: %v", p, r)
				}
			}
			for _, p := range row.not {
				if regexp.MustCompile("(?m)" + p).MatchString(r.Output()) {
					t.Errorf("match of %q: %v", p, r)
				}
			}
		})
	}
	unchanged(t, h, before)
}
