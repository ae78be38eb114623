//go:build integration

package integration

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"machined/tests/host"
)

// soakRounds is how often TestSoak registers a machine; `make soak` has 100,000.
func soakRounds(t *testing.T) int {
	t.Helper()
	text := os.Getenv("SOAK_ROUNDS")
	if text == "" {
		return 2000
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 4 {
		t.Fatalf("SOAK_ROUNDS: %q is no number of rounds", text)
	}
	return n
}

// TestSoak registers and unregisters a machine over and over, beside others that
// stay. The daemon's memory stays below its bound and does not grow, and it
// keeps no file descriptor.
func TestSoak(t *testing.T) {
	ours(t)
	const (
		maxKiB   = 24 << 10
		maxGrown = 2 << 10 // KiB, in the second half of the rounds
		staying  = 50
	)
	rounds := soakRounds(t)
	h := host.Boot(t, host.Config{Suite: host.Bookworm})
	conn := h.Bus(t)
	register := func(name string, pid uint32) {
		t.Helper()
		if err := call(conn, "RegisterMachine", name, []byte{}, "soak", "container", pid, "").Err; err != nil {
			t.Fatalf("register %s: %v", name, err)
		}
	}
	p := h.Start(t, "sh", "-c", "for i in $(seq "+strconv.Itoa(staying+1)+"); do sleep 1000000 & echo $!; done; echo all; wait")
	var pids []uint32
	for _, field := range strings.Fields(strings.TrimSuffix(strings.TrimSpace(p.Expect(t, "all")), "all")) {
		n, err := strconv.ParseUint(field, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, uint32(n))
	}
	for i, pid := range pids[:staying] {
		register("stays"+strconv.Itoa(i), pid)
	}
	daemon := h.DaemonPID(t)
	number := func(script string) int {
		t.Helper()
		n, err := strconv.Atoi(strings.TrimSpace(h.Shell(t, script)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	rss := func() int { return number("awk '/^VmRSS/ {print $2}' /proc/" + daemon + "/status") }
	fds := func() int { return number("ls /proc/" + daemon + "/fd | wc -l") }
	churn := func(n int) {
		for range n {
			register("comes-and-goes", pids[staying])
			if err := call(conn, "UnregisterMachine", "comes-and-goes").Err; err != nil {
				t.Fatal(err)
			}
		}
	}
	churn(rounds / 4)
	files := fds()
	churn(rounds / 4)
	half := rss()
	churn(rounds / 2)
	end := rss()
	t.Logf("RSS after half of %d rounds %d KiB, after all %d KiB; %d descriptors", rounds, half, end, files)
	if end > maxKiB || end > half+maxGrown {
		t.Errorf("RSS: %d KiB after half of the rounds, %d after all; at most %d, and %d more", half, end, maxKiB, maxGrown)
	}
	if got := fds(); got > files+2 { // two: a peer's process, known for as long as it is there
		t.Errorf("descriptors: %d, %d before", got, files)
	}
	if names := machines(t, h); len(names) != staying {
		t.Errorf("got %d machines, want %d", len(names), staying)
	}
	if pid := h.DaemonPID(t); pid != daemon {
		t.Errorf("the daemon was restarted: %s, then %s", daemon, pid)
	}
}
