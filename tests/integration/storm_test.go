//go:build integration

package integration

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"machined/tests/host"
)

// stormLookups is how many lookups the storm makes; LOOKUPS=1000000 is the full
// run of `make soak`.
func stormLookups(t *testing.T) int {
	t.Helper()
	n := 20_000
	if text := os.Getenv("LOOKUPS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 1 {
			t.Fatalf("LOOKUPS: %q is no number of lookups", text)
		}
	}
	return n
}

// TestLookupStorm looks machines up from 32 threads while some of them come and
// go and the daemon is killed again and again: every answer is an address, or
// that there is no such machine.
func TestLookupStorm(t *testing.T) {
	h := host.Boot(t, host.Config{Suite: host.Bookworm})
	h.Compile(t, "testdata/storm.c", "/usr/local/bin/storm")
	h.BusyboxTree(t, "bb")
	h.Shell(t, `sed -i 's/^hosts:.*/hosts: files mymachines/' /etc/nsswitch.conf`)
	// Machines with a network of their own and an address in it.
	const run = `exec systemd-nspawn -q -x -D /var/lib/machines/bb -M %s -n --pipe sh -c 'ip addr add 192.0.2.%d/32 dev host0; ip link set host0 up; exec sleep 1000000'`
	for i := range 4 {
		h.Start(t, "sh", "-c", fmt.Sprintf(run, "steady"+strconv.Itoa(i), i+1))
	}
	for i := range 4 {
		name := "steady" + strconv.Itoa(i)
		host.Eventually(t, 30*time.Second, func() error { return exitError(h.Try("getent", "ahostsv4", name)) })
	}
	h.Start(t, "sh", "-c", `while :; do for i in 1 2; do systemd-nspawn -q -x -D /var/lib/machines/bb -M fleeting$i -n --pipe sh -c "ip addr add 192.0.2.10$i/32 dev host0; ip link set host0 up; usleep 300000" </dev/null & done; wait; done`)
	h.Start(t, "sh", "-c", `while :; do sleep 0.7; systemctl kill -s KILL systemd-machined.service; done`)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Minute)
	defer cancel()
	n := stormLookups(t)
	r := h.Run(ctx, "storm", "32", strconv.Itoa(n), "steady0", "steady1", "steady2", "steady3", "fleeting1", "fleeting2", "nobody")
	t.Log(r.Stdout)
	m := regexp.MustCompile(`found (\d+) unknown (\d+) other 0`).FindStringSubmatch(r.Stdout)
	if r.Exit != 0 || m == nil {
		t.Fatal(r)
	}
	// Four of seven names are there all the time, one is never.
	if found, _ := strconv.Atoi(m[1]); found < n/2 {
		t.Errorf("only %d of %d lookups found an address", found, n)
	}
}
