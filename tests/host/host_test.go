package host_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// skipUnlessBooted keeps the plain unit run free of debootstrap.
func skipUnlessBooted(t *testing.T) {
	t.Helper()
	host.NeedRoot(t)
	if os.Getenv("MACHINED_TEST_HOSTS") != "1" {
		t.Skip("boots hosts: set MACHINED_TEST_HOSTS=1")
	}
}

func TestBootAndRun(t *testing.T) {
	skipUnlessBooted(t)
	for _, suite := range host.Suites {
		t.Run(string(suite), func(t *testing.T) {
			start := time.Now()
			h := host.Boot(t, host.Config{Suite: suite, Impl: host.Stock})
			t.Logf("booted in %v", time.Since(start))
			if got := strings.TrimSpace(h.MustRun(t, "cat", "/proc/1/comm")); got != "systemd" {
				t.Errorf("PID 1: got %q, want systemd", got)
			}
			if r := h.TryAs("alice", "id", "-un"); strings.TrimSpace(r.Stdout) != "alice" {
				t.Errorf("run as alice: %v", r)
			}
			if r := h.Try("sh", "-c", "exit 7"); r.Exit != 7 {
				t.Errorf("exit status: %v", r)
			}
			p := h.StartTTY(t, "", "sh", "-c", "tty; read x; echo got-$x")
			p.Expect(t, "/dev/pts/")
			p.Send(t, "it\n")
			p.Expect(t, "got-it")
			if got := p.Wait(t); got != 0 {
				t.Errorf("terminal: exit %d", got)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			if r := h.Run(ctx, "sleep", "100"); r.Err == nil {
				t.Errorf("time-out: %v", r)
			}
			// A zombie until the machine's own PID 1 gets round to it.
			if r := h.Try("pgrep", "-r", "R,S,D", "-x", "sleep"); r.Exit != 1 {
				t.Errorf("left after time-out: %v", r)
			}
			start = time.Now()
			h.OSTree(t, "deb")
			t.Logf("copied a tree in %v", time.Since(start))
			start = time.Now()
			h.MustRun(t, "machinectl", "start", "deb")
			t.Logf("started it in %v", time.Since(start))
			h.MustRun(t, "machinectl", "terminate", "deb")
		})
	}
}
