//go:build integration

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// bench boots one host for a benchmark with the product over stock's.
func bench(b *testing.B, s host.Suite) *host.Host {
	b.Helper()
	h := host.Boot(b, host.Config{Suite: s, Impl: host.Ours})
	installClient(b, h)
	return h
}

// pair boots a host with the product and one without.
func pair(b *testing.B, s host.Suite) map[host.Impl]*host.Host {
	b.Helper()
	stock := host.Boot(b, host.Config{Suite: s, Impl: host.Stock})
	installClient(b, stock)
	return map[host.Impl]*host.Host{host.Ours: bench(b, s), host.Stock: stock}
}

// runner is a command in a host, timed from its execution to its end.
type runner struct {
	impl host.Impl
	h    *host.Host
	timedCommand
	ready func() // called before each turn
}

// timedCommand is what the timer in the host is told. Warm, Before and After are for a
// shell there, and not timed.
type timedCommand struct {
	Argv          []string
	Warm          string // in the place of a first run that does not count
	Before, After string
	Count         int
	Unit          string // whose processes' memory is looked at meanwhile, below the cgroups' root
}

// settle comes before what is measured by the gigabyte: nothing waits to be written, and the
// memory that is free has been used before. A virtual machine's host takes memory back that is
// not, and to get a gigabyte again takes two seconds, of whoever comes first.
const settle = "sync; dd if=/dev/zero of=/dev/null bs=2G count=1 status=none"

// race times commands in turns, so that what else the machine does falls on all,
// and records milliseconds. Entering a host takes longer than what is measured, so a
// program in the host has the clock, and b.Loop is no use.
func race(b *testing.B, name string, turns, each int, runners ...runner) {
	b.Helper()
	took, memory := map[host.Impl][]float64{}, map[host.Impl][]float64{}
	for range turns {
		for _, r := range runners {
			if r.ready != nil {
				r.ready()
			}
			r.Count = each
			times, peaks := r.measure(b)
			took[r.impl] = append(took[r.impl], times...)
			if r.Unit != "" {
				memory[r.impl] = append(memory[r.impl], slices.Max(peaks))
			}
		}
	}
	for impl, all := range memory {
		record(name+", memory", "MiB", impl, all...)
	}
	for impl, all := range took {
		record(name, "ms", impl, all...)
		b.ReportMetric(result(name, impl).p50, strings.ReplaceAll(name, " ", "_")+"/"+string(impl)+"-ms")
	}
}

// time runs the command and returns how long each run took, in ms.
func (r runner) time(b *testing.B) []float64 {
	b.Helper()
	times, _ := r.measure(b)
	return times
}

// measure runs the command and returns how long each run took, in ms, but for the first,
// which finds nothing in any cache, and the most memory of the unit in it, in MiB.
func (r runner) measure(b *testing.B) (times, peaks []float64) {
	b.Helper()
	spec, err := json.Marshal(r.timedCommand)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	res := r.h.RunInput(ctx, bytes.NewReader(spec), "env", "BENCH_CLIENT=time", clientPath)
	if res.Exit != 0 {
		b.Fatalf("%s: %v", r.impl, res)
	}
	for line := range strings.Lines(res.Stdout) {
		var ns, peak int64
		if _, err := fmt.Sscan(line, &ns, &peak); err != nil {
			b.Fatal(err)
		}
		times, peaks = append(times, float64(ns)/1e6), append(peaks, float64(peak)/1024)
	}
	if r.Warm == "" {
		times, peaks = times[1:], peaks[1:]
	}
	return times, peaks
}

// runTimer is the timer in the host.
func runTimer() error {
	var c timedCommand
	if err := json.NewDecoder(os.Stdin).Decode(&c); err != nil {
		return err
	}
	if err := shell(c.Warm); err != nil {
		return err
	}
	if c.Warm == "" {
		c.Count++
	}
	for range c.Count {
		if err := shell(c.Before); err != nil {
			return err
		}
		cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
		var text bytes.Buffer
		cmd.Stderr = &text
		peak := watchMemory(c.Unit)
		start := time.Now()
		err := cmd.Run()
		took := time.Since(start)
		kib := peak()
		if err != nil {
			return fmt.Errorf("%q: %w: %s", c.Argv, err, text.String())
		}
		if err := shell(c.After); err != nil {
			return err
		}
		fmt.Println(took.Nanoseconds(), kib)
	}
	return nil
}

func shell(script string) error {
	if script == "" {
		return nil
	}
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return nil
}
