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

// clientPath is where this program is in the hosts.
const clientPath = "/bench-client"

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
	if err := os.WriteFile(h.Path(clientPath), data, 0o755); err != nil {
		tb.Fatal(err)
	}
}

// clients runs n clients side by side and returns the times of all their calls,
// sorted.
func clients(tb testing.TB, h *host.Host, n int, spec string) []time.Duration {
	tb.Helper()
	return clientTimes(tb, h, fmt.Sprintf(`i=0; while [ $i -lt %d ]; do BENCH_CLIENT=%q `+clientPath+` >/tmp/bench.$i & i=$((i+1)); done; wait; cat /tmp/bench.*; rm /tmp/bench.*`, n, spec))
}

// besideOthers runs a client while n others of another kind never pause.
func besideOthers(tb testing.TB, h *host.Host, n int, others, spec string) []time.Duration {
	tb.Helper()
	return clientTimes(tb, h, fmt.Sprintf(`i=0; while [ $i -lt %d ]; do BENCH_CLIENT=%q `+clientPath+` & pids="$pids $!"; i=$((i+1)); done
sleep 0.5; BENCH_CLIENT=%q `+clientPath+`; kill $pids`, n, others, spec))
}

func clientTimes(tb testing.TB, h *host.Host, script string) []time.Duration {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r := h.Run(ctx, "sh", "-c", script)
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
// the leaders. The first have networks of their own.
func createMachines(tb testing.TB, h *host.Host, conn *godbus.Conn, n int) []string {
	tb.Helper()
	p := h.Start(tb, "sh", "-c", fmt.Sprintf("for i in $(seq %d); do own=; [ $i -gt 20 ] || own='unshare -n'; $own sleep 1000000 & echo pid $!; done; echo all; wait", n))
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

// BenchmarkLoad measures the daemon with many machines beside stock's, in turns.
// The list is a ListMachines call, and machinectl list a whole command; the look-up
// is the 99th percentile of eight clients that never pause, or of one beside eight that
// ask all kinds of things.
func BenchmarkLoad(b *testing.B) {
	const turns = 5
	for _, machines := range []int{100, 1000} {
		h := bench(b, host.Bookworm)
		conn := h.Bus(b)
		pids := createMachines(b, h, conn, machines)
		list, lookup := fmt.Sprintf("list %d machines", machines), fmt.Sprintf("look-up p99, %d", machines)
		beside := fmt.Sprintf("look-up p99 beside others, %d", machines)
		times := map[string]map[host.Impl][]float64{list: {}, lookup: {}, beside: {}}
		memory := map[host.Impl][]float64{}
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
				t = besideOthers(b, h, 8, "mix "+strings.Join(pids[:50], " "), "GetMachineByPID 300 "+strings.Join(pids[:50], " "))
				b.Logf("%s: look-up beside others p50 %v p99 %v", impl, t[len(t)/2], t[len(t)*99/100])
				times[beside][impl] = append(times[beside][impl], float64(t[len(t)*99/100].Nanoseconds())/1e3)
				memory[impl] = append(memory[impl], rss(b, h))
			}
		}
		for impl, all := range memory {
			record(fmt.Sprintf("daemon RSS, %d machines", machines), "KiB", impl, all...)
		}
		for name, of := range times {
			for impl, all := range of {
				slices.Sort(all)
				b.Logf("%s, %s: %.0f", name, impl, all)
				record(name, "µs", impl, all...)
			}
		}
		race(b, fmt.Sprintf("machinectl list, %d", machines), 2, 3,
			runner{impl: host.Stock, h: h, timedCommand: command(h.Stock("machinectl") + " list --no-pager"), ready: func() { h.RunStockDaemon(b) }},
			runner{impl: host.Ours, h: h, timedCommand: command("machinectl list --no-pager"), ready: func() { h.RunOwnDaemon(b) }})
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
	return number(tb, h.Shell(tb, "awk '/^VmRSS/ {print $2}' /proc/"+h.DaemonPID(tb)+"/status"))
}

func number(tb testing.TB, text string) float64 {
	tb.Helper()
	n, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil {
		tb.Fatalf("read a number: %v", err)
	}
	return n
}

// millis are times in ms.
func millis(times []time.Duration) []float64 {
	out := make([]float64, len(times))
	for i, t := range times {
		out[i] = float64(t.Nanoseconds()) / 1e6
	}
	return out
}
