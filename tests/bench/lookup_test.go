//go:build integration

package bench

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"testing"
	"time"

	"machined/tests/host"
)

// BenchmarkLookup is the median time in which a program finds the address of a
// machine by its name, in µs: the NSS module, the daemon and what is between them.
func BenchmarkLookup(b *testing.B) {
	for _, impl := range []host.Impl{host.Stock, host.Ours} {
		h := host.Boot(b, host.Config{Suite: host.Bookworm, Impl: impl})
		h.Compile(b, "../integration/testdata/storm.c", "/usr/local/bin/storm")
		h.BusyboxTree(b, "bb")
		h.Shell(b, `sed -i 's/^hosts:.*/hosts: files mymachines/' /etc/nsswitch.conf`)
		h.Start(b, "systemd-nspawn", "-q", "-M", "bb", "-n", "--pipe", "sh", "-c", "ip addr add 192.0.2.1/32 dev host0; ip link set host0 up; exec sleep 1000000")
		host.Eventually(b, 30*time.Second, func() error {
			if r := h.Try("getent", "ahostsv4", "bb"); r.Exit != 0 {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
		const lookups = 3000
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		r := h.Run(ctx, "storm", "1", strconv.Itoa(lookups), "bb")
		cancel()
		m := regexp.MustCompile(`found 3000 .* p50 (\d+)`).FindStringSubmatch(r.Stdout)
		if r.Exit != 0 || m == nil {
			b.Fatal(r)
		}
		ns, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			b.Fatal(err)
		}
		record("look up a name", "µs", impl, ns/1e3)
	}
}
