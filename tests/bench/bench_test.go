//go:build integration

package bench

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/tests/host"
)

// ratios collects time per operation by benchmark and implementation.
var ratios struct {
	mu    sync.Mutex
	order []string
	ns    map[string]map[host.Impl]float64
}

func record(b *testing.B, name string, impl host.Impl, perOp float64) {
	ratios.mu.Lock()
	defer ratios.mu.Unlock()
	if ratios.ns == nil {
		ratios.ns = map[string]map[host.Impl]float64{}
	}
	if ratios.ns[name] == nil {
		ratios.ns[name] = map[host.Impl]float64{}
		ratios.order = append(ratios.order, name)
	}
	ratios.ns[name][impl] = perOp
}

func value(name string, impl host.Impl) float64 {
	ratios.mu.Lock()
	defer ratios.mu.Unlock()
	return ratios.ns[name][impl]
}

// limits are the ratios that the product promises.
var limits = map[string]float64{
	"spawn unregistered": 0.3, "spawn registered": 0.5, "list 100 machines": 1.0, "boot of Debian to READY": 0.95,
	"look up a name":     0.5,
	"list 1000 machines": 0.5, "look-up p99, 100": 0.7, "look-up p99, 1000": 0.7,
}

func TestMain(m *testing.M) {
	benchClient()
	code := m.Run()
	for _, name := range ratios.order {
		v := ratios.ns[name]
		ours := v[host.Ours]
		for _, impl := range slices.Sorted(maps.Keys(v)) {
			switch {
			case impl == host.Ours && len(v) == 1:
				fmt.Printf("value %-30s %.4g\n", name, ours)
			case impl == host.Ours:
			case impl != host.Stock:
				fmt.Printf("ratio %-30s ours %.4g, %s %.4g: %.2f\n", name, ours, impl, v[impl], ours/v[impl])
			default:
				verdict := ""
				if limit, ok := limits[name]; ok {
					verdict = fmt.Sprintf(" (at most %.2f)", limit)
					if ours/v[impl] > limit {
						verdict += " MISSED"
					}
				}
				fmt.Printf("ratio %-30s ours %.4g, stock %.4g: %.2f%s\n", name, ours, v[impl], ours/v[impl], verdict)
			}
		}
	}
	os.Exit(code)
}

// bench boots one host for a benchmark with the product over stock's.
func bench(b *testing.B) *host.Host {
	b.Helper()
	return host.Boot(b, host.Config{Suite: host.Bookworm, Impl: host.Ours})
}

// inHost times n runs of a command in the host. The loop is a shell's there:
// entering the host for each run would be measured too, so b.Loop is no use.
func inHost(b *testing.B, h *host.Host, name string, impl host.Impl, command string) {
	b.Run(name+"/"+string(impl), func(b *testing.B) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do %s >/dev/null || exit 1; i=$((i+1)); done", b.N, command)
		b.ResetTimer()
		r := h.Run(ctx, "sh", "-c", script)
		b.StopTimer()
		if r.Exit != 0 {
			b.Fatal(r)
		}
		record(b, name, impl, float64(b.Elapsed().Nanoseconds())/float64(b.N)/1e6)
	})
}

// BenchmarkSpawn is the time from nothing to `true` in a tiny tree and back, in ms.
func BenchmarkSpawn(b *testing.B) {
	h := bench(b)
	h.BusyboxTree(b, "bb")
	h.MustRun(b, "machinectl", "list")
	programs := map[host.Impl]string{host.Ours: "systemd-nspawn", host.Stock: h.Stock("systemd-nspawn")}
	for _, impl := range []host.Impl{host.Stock, host.Ours} {
		inHost(b, h, "spawn unregistered", impl, programs[impl]+" -q --register=no --keep-unit --pipe -D /var/lib/machines/bb true")
	}
	for _, impl := range []host.Impl{host.Stock, host.Ours} {
		if impl == host.Stock {
			h.RunStockDaemon(b)
		} else {
			h.RunOwnDaemon(b)
		}
		inHost(b, h, "spawn registered", impl, programs[impl]+" -q --pipe -D /var/lib/machines/bb true")
	}
}

// BenchmarkListMachines is one ListMachines call with 100 machines, in µs.
func BenchmarkListMachines(b *testing.B) {
	h := bench(b)
	conn := h.Bus(b)
	p := h.Start(b, "sh", "-c", "for i in $(seq 100); do sleep 1000000 & echo pid $!; done; echo all; wait")
	pids := strings.Fields(strings.ReplaceAll(p.Expect(b, "all"), "pid ", ""))
	for i, pid := range pids {
		n, err := strconv.ParseUint(pid, 10, 32)
		if err != nil {
			b.Fatal(err)
		}
		id := make([]byte, 16)
		id[0] = byte(i + 1)
		err = conn.Object("org.freedesktop.machine1", "/org/freedesktop/machine1").Call("org.freedesktop.machine1.Manager.CreateMachine", 0,
			"m"+pid, id, "bench", "container", uint32(n), "", []struct {
				Name  string
				Value godbus.Variant
			}{}).Err
		if err != nil {
			b.Fatalf("create machine %d: %v", i, err)
		}
	}
	for _, impl := range []host.Impl{host.Stock, host.Ours} {
		if impl == host.Stock {
			h.RunStockDaemon(b)
		} else {
			h.RunOwnDaemon(b)
		}
		b.Run("list/"+string(impl), func(b *testing.B) {
			object := conn.Object("org.freedesktop.machine1", "/org/freedesktop/machine1")
			var all []struct {
				Name, Class, Service string
				Path                 godbus.ObjectPath
			}
			n := 0
			for b.Loop() {
				if err := object.Call("org.freedesktop.machine1.Manager.ListMachines", 0).Store(&all); err != nil {
					b.Fatal(err)
				}
				n++
			}
			if len(all) != 101 {
				b.Errorf("got %d machines, want 101", len(all))
			}
			record(b, "list 100 machines", impl, float64(b.Elapsed().Nanoseconds())/float64(n)/1e3)
		})
	}
}

// idle is how long a machine has run when its supervisor's memory is looked at.
const idle = 4 * time.Second

// BenchmarkMemory reports memory, and no time: the idle daemon's RSS and the
// PSS of the spawner that stands by an idle machine, in KiB.
func BenchmarkMemory(b *testing.B) {
	h := bench(b)
	h.BusyboxTree(b, "one")
	h.BusyboxTree(b, "two")
	const rssLimit = 20 * 1024
	for _, impl := range []host.Impl{host.Stock, host.Ours} {
		if impl == host.Stock {
			h.RunStockDaemon(b)
		} else {
			h.RunOwnDaemon(b)
		}
		h.MustRun(b, "machinectl", "list")
		rss := number(b, h.Shell(b, "awk '/^VmRSS/ {print $2}' /proc/"+h.DaemonPID(b)+"/status"))
		record(b, "daemon RSS KiB", impl, rss)
		if impl == host.Ours && rss > rssLimit {
			b.Errorf("idle daemon: %v KiB, at most %d", rss, rssLimit)
		}
	}
	for impl, m := range map[host.Impl][2]string{host.Stock: {h.Stock("systemd-nspawn"), "one"}, host.Ours: {"systemd-nspawn", "two"}} {
		h.Start(b, m[0], "-q", "-M", m[1], "sleep", "1000000")
		host.Eventually(b, 20*time.Second, func() error {
			if r := h.Try("machinectl", "show", m[1], "-p", "Leader", "--value"); r.Exit != 0 {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
		// Idle is who has had nothing to do for a while. The supervisor is the leader's parent.
		time.Sleep(idle)
		pss := number(b, h.Shell(b, `leader=$(machinectl show `+m[1]+` -p Leader --value)
awk '/^Pss:/ {print $2}' /proc/$(ps -o ppid= -p $leader | tr -d ' ')/smaps_rollup`))
		record(b, "supervisor PSS KiB", impl, pss)
	}
}

func number(b *testing.B, text string) float64 {
	b.Helper()
	n, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil {
		b.Fatalf("read a number: %v", err)
	}
	return n
}
