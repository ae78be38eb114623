//go:build integration

package bench

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"machined/tests/host"
)

// sample is what was measured of one implementation.
type sample struct{ p25, p50, p95 float64 }

// results are in the order in which they came.
var results struct {
	mu    sync.Mutex
	order []string
	unit  map[string]string
	of    map[string]map[host.Impl]sample
}

// record keeps values of a benchmark, in a unit. Their middle is what counts: the machine does
// other things as well.
func record(name, unit string, impl host.Impl, values ...float64) {
	slices.Sort(values)
	results.mu.Lock()
	defer results.mu.Unlock()
	if results.of == nil {
		results.of, results.unit = map[string]map[host.Impl]sample{}, map[string]string{}
	}
	if results.of[name] == nil {
		results.of[name] = map[host.Impl]sample{}
		results.order = append(results.order, name)
	}
	results.unit[name] = unit
	results.of[name][impl] = sample{values[len(values)/4], values[len(values)/2], values[len(values)*95/100]}
}

// result is what was recorded.
func result(name string, impl host.Impl) sample {
	results.mu.Lock()
	defer results.mu.Unlock()
	return results.of[name][impl]
}

// limits are the ratios that the product promises, by name without the version of
// stock at its end.
var limits = map[string]float64{
	"spawn unregistered": 0.3, "spawn registered": 0.5, "boot of Debian to READY": 0.95,
	"look up a name": 0.5, "list 100 machines": 1.0, "list 1000 machines": 0.5, "look-up p99, 100": 0.7, "look-up p99, 1000": 0.7,
	"look-up p99 beside others, 100": 0.7, "look-up p99 beside others, 1000": 0.7,
	"import-tar gzip": 0.6, "import-tar xz": 0.6, "export-tar gzip": 0.7, "export-tar plain": 0.7, "pull-tar gzip": 0.7, "copy-to": 0.7,
	"clone on ext4": 0.5, "clone on btrfs": 1.0, "clone on xfs": 1.0,
}

// most is what the product may take whatever stock does, in the unit of the values.
var most = map[string]float64{
	"clone --overlay on ext4": 20, "import-tar plain, memory": importdMemory, "import-tar gzip, memory": importdMemory,
	"import-tar xz, memory": importdMemory, "import-tar zstd, memory": importdMemory, "pull-tar gzip, memory": importdMemory,
}

// atMost is the text on what the product may take, if there is a limit.
func atMost(name, unit string, ours sample) string {
	limit, ok := most[name]
	switch {
	case !ok:
		return ""
	case ours.p50 > limit:
		return fmt.Sprintf(" (at most %g %s) MISSED", limit, unit)
	}
	return fmt.Sprintf(" (at most %g %s)", limit, unit)
}

// TestMain is also the clients in the hosts, and prints the ratios when all is measured.
func TestMain(m *testing.M) {
	benchClient()
	code := m.Run()
	for _, name := range results.order {
		printRatios(name, results.unit[name], results.of[name])
	}
	os.Exit(code)
}

func printRatios(name, unit string, of map[host.Impl]sample) {
	text := func(s sample) string {
		if s.p50 == s.p95 {
			return fmt.Sprintf("%.4g", s.p50)
		}
		return fmt.Sprintf("%.4g (p95 %.4g)", s.p50, s.p95)
	}
	ours, measured := of[host.Ours]
	if !measured || len(of) == 1 {
		for impl, s := range of {
			fmt.Printf("value %-32s %s: %s %s%s\n", name, impl, text(s), unit, atMost(name, unit, s))
		}
		return
	}
	for _, impl := range slices.Sorted(maps.Keys(of)) {
		if impl == host.Ours {
			continue
		}
		ratio := ours.p50 / of[impl].p50
		verdict := atMost(name, unit, ours)
		if limit, ok := limits[base(name)]; ok && impl == host.Stock {
			verdict += fmt.Sprintf(" (at most %.2f)", limit)
			if ratio > limit {
				verdict += " MISSED"
			}
		}
		fmt.Printf("ratio %-32s %.2f%s: ours %s, %s %s %s\n", name, ratio, verdict, text(ours), impl, text(of[impl]), unit)
	}
}

// versions are those of stock in the hosts.
var versions = map[host.Suite]string{host.Bookworm: "252", host.Trixie: "257"}

// of names a benchmark with the version of stock that is beside it.
func of(name string, s host.Suite) string { return name + ", " + versions[s] }

func base(name string) string {
	for _, v := range versions {
		name = strings.TrimSuffix(name, ", "+v)
	}
	return name
}
