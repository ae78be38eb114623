//go:build integration

package bench

import (
	"fmt"
	"strings"
	"testing"

	"machined/tests/host"
)

// BenchmarkCreateMachine is CreateMachine, to its reply, which comes when the scope
// is there, and RegisterMachine, which makes none.
func BenchmarkCreateMachine(b *testing.B) {
	const turns, each = 5, 20
	hosts := pair(b, host.Bookworm)
	create, register := map[host.Impl][]float64{}, map[host.Impl][]float64{}
	for turn := range turns {
		for impl, h := range hosts {
			if turn == 0 {
				h.MustRun(b, "machinectl", "list")
				h.Shell(b, "systemd-run -q --unit=registered sleep 1000000")
			}
			p := h.Start(b, "sh", "-c", fmt.Sprintf("for i in $(seq %d); do sleep 1000000 & echo $!; done; echo all; wait", each))
			pids := strings.Fields(strings.ReplaceAll(p.Expect(b, "all"), "all", ""))
			create[impl] = append(create[impl], millis(clients(b, h, 1, "CreateMachine "+strings.Join(pids, " ")))...)
			pid := strings.TrimSpace(h.Shell(b, "systemctl show -p MainPID --value registered"))
			register[impl] = append(register[impl], millis(clients(b, h, 1, "RegisterMachine "+strings.Repeat(pid+" ", each)))...)
		}
	}
	for impl := range hosts {
		record("CreateMachine", "ms", impl, create[impl]...)
		record("RegisterMachine", "ms", impl, register[impl]...)
	}
}
