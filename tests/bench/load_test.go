//go:build integration

package bench

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/tests/host"
)

// installClient puts this program into the host.
func installClient(tb testing.TB, h *host.Host) {
	tb.Helper()
	exe, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	data, err := os.ReadFile(exe)
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(h.Path("/bench-client"), data, 0o755); err != nil {
		tb.Fatal(err)
	}
}

// clients runs n clients side by side and returns the times of all their calls,
// sorted.
func clients(tb testing.TB, h *host.Host, n int, spec string) []time.Duration {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r := h.Run(ctx, "sh", "-c", fmt.Sprintf(`i=0; while [ $i -lt %d ]; do BENCH_CLIENT=%q /bench-client >/tmp/bench.$i & i=$((i+1)); done; wait; cat /tmp/bench.*; rm /tmp/bench.*`, n, spec))
	if r.Exit != 0 || r.Stderr != "" {
		tb.Fatal(r)
	}
	var out []time.Duration
	for _, field := range strings.Fields(r.Stdout) {
		ns, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			tb.Fatal(err)
		}
		out = append(out, time.Duration(ns))
	}
	slices.Sort(out)
	return out
}

// createMachines makes n machines, each with a process of its own, and returns
// the leaders.
func createMachines(tb testing.TB, h *host.Host, conn *godbus.Conn, n int) []string {
	tb.Helper()
	p := h.Start(tb, "sh", "-c", fmt.Sprintf("for i in $(seq %d); do sleep 1000000 & echo pid $!; done; echo all; wait", n))
	pids := strings.Fields(strings.ReplaceAll(p.Expect(tb, "all"), "pid ", ""))
	calls := make(chan *godbus.Call, n)
	for _, pid := range pids {
		number, err := strconv.ParseUint(pid, 10, 32)
		if err != nil {
			tb.Fatal(err)
		}
		conn.Object("org.freedesktop.machine1", "/org/freedesktop/machine1").Go("org.freedesktop.machine1.Manager.CreateMachine", 0, calls,
			"m"+pid, make([]byte, 16), "bench", "container", uint32(number), "", []struct {
				Name  string
				Value godbus.Variant
			}{})
		if err := (<-calls).Err; err != nil {
			tb.Fatalf("create machine m%s: %v", pid, err)
		}
	}
	return pids
}

// BenchmarkLoad measures the daemon with many machines beside stock's: the
// implementations take turns, since the machine that runs this does other
// things as well. ListMachines is in µs, the middle of all calls; the look-up
// is the 99th percentile of eight clients that never pause.
func BenchmarkLoad(b *testing.B) {
	const turns = 5
	for _, machines := range []int{100, 1000} {
		h := bench(b)
		installClient(b, h)
		conn := h.Bus(b)
		pids := createMachines(b, h, conn, machines)
		list, lookup := fmt.Sprintf("list %d machines", machines), fmt.Sprintf("look-up p99, %d", machines)
		times := map[string]map[host.Impl][]float64{list: {}, lookup: {}}
		for range turns {
			for _, impl := range []host.Impl{host.Stock, host.Ours} {
				if impl == host.Stock {
					h.RunStockDaemon(b)
				} else {
					h.RunOwnDaemon(b)
				}
				clients(b, h, 1, "ListMachines 20")
				t := clients(b, h, 1, "ListMachines 300")
				times[list][impl] = append(times[list][impl], float64(t[len(t)/2].Nanoseconds())/1e3)
				before := cpuTicks(b, h)
				t = clients(b, h, 8, "GetMachineByPID 1500 "+strings.Join(pids[:50], " "))
				b.Logf("%s: look-up p50 %v p99 %v; CPU of the daemon per call %.1f µs", impl, t[len(t)/2], t[len(t)*99/100], (cpuTicks(b, h)-before)*1e4/float64(len(t)))
				times[lookup][impl] = append(times[lookup][impl], float64(t[len(t)*99/100].Nanoseconds())/1e3)
				if impl == host.Ours {
					b.Logf("RSS %v KiB", rss(b, h))
				}
			}
		}
		for name, of := range times {
			for impl, all := range of {
				slices.Sort(all)
				b.Logf("%s, %s: %.0f", name, impl, all)
				record(b, name, impl, all[len(all)/2])
			}
		}
	}
}

// cpuTicks is the CPU time of the daemon in 1/100 s (proc_pid_stat(5)).
func cpuTicks(tb testing.TB, h *host.Host) float64 {
	tb.Helper()
	fields := strings.Fields(h.Shell(tb, "cat /proc/"+h.DaemonPID(tb)+"/stat"))
	user, err := strconv.ParseFloat(fields[13], 64)
	system, err2 := strconv.ParseFloat(fields[14], 64)
	if err != nil || err2 != nil {
		tb.Fatal(err, err2)
	}
	return user + system
}

// rss is the memory of the daemon that is in RAM, in KiB.
func rss(tb testing.TB, h *host.Host) float64 {
	tb.Helper()
	n, err := strconv.ParseFloat(strings.TrimSpace(h.Shell(tb, "awk '/^VmRSS/ {print $2}' /proc/"+h.DaemonPID(tb)+"/status")), 64)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}
