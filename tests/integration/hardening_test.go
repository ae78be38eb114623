//go:build integration

package integration

import (
	"encoding/json"
	"testing"

	"machined/tests/host"
)

// TestHardening: what stock's units keep from the daemons, ours do too, as
// systemd-analyze(1) judges them.
func TestHardening(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		judge := func(file string) map[string]bool {
			var verdicts []struct {
				Set  *bool
				Name string
			}
			out := h.MustRun(t, "systemd-analyze", "security", "--no-pager", "--offline=yes", "--json=short", file)
			if err := json.Unmarshal([]byte(out), &verdicts); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			good := map[string]bool{}
			for _, v := range verdicts {
				if v.Set != nil {
					good[v.Name] = *v.Set
				}
			}
			return good
		}
		for _, unit := range []string{"systemd-machined.service", "systemd-importd.service"} {
			h.Shell(t, "mkdir -p /var/tmp/stock; cp /usr/lib/systemd/system/"+unit+".distrib /var/tmp/stock/"+unit)
			stock, mine := judge("/var/tmp/stock/"+unit), judge("/usr/lib/systemd/system/"+unit)
			if len(stock) < 20 {
				t.Fatalf("%s: only %d verdicts", unit, len(stock))
			}
			for name, good := range stock {
				if good && !mine[name] {
					t.Errorf("%s: %s is kept by stock's, not by ours", unit, name)
				}
			}
		}
	})
}
