package nsexec

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// TestGuard has acts on a machine hang: their callers are told soon, no further
// ones begin, others' machines are not held up, and when the acts come back
// everything is as before.
func TestGuard(t *testing.T) {
	t.Parallel()
	self, err := sys.OpenProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	other, err := sys.OpenProcess(os.Getppid())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	g := guard{machines: map[uint64]*crew{}, all: make(chan struct{}, 2*maxActs), timeout: 50 * time.Millisecond}
	answer := make(chan struct{})
	var begun, discarded atomic.Int64
	hang := func(ctx context.Context, p *sys.Process) (int, error) {
		begun.Add(1)
		<-answer
		if !p.Alive() || ctx.Err() == nil {
			t.Error("the act has lost its process, or does not know that nobody waits")
		}
		return 1, nil
	}
	results := make(chan error)
	for range 3 * maxActs {
		go func() {
			_, err := withinGuard(t.Context(), &g, self, hang, func(int) { discarded.Add(1) })
			results <- err
		}()
	}
	for range 3 * maxActs {
		if err := <-results; !errors.Is(err, unix.ETIMEDOUT) {
			t.Errorf("an act that hangs: got %v, want ETIMEDOUT", err)
		}
	}
	if n := begun.Load(); n > maxActs {
		t.Errorf("%d acts hang, at most %d may", n, maxActs)
	}
	quick := func(context.Context, *sys.Process) (int, error) { return 7, nil }
	if _, err := withinGuard(t.Context(), &g, self, quick, nil); !errors.Is(err, unix.ETIMEDOUT) {
		t.Errorf("an act on a machine that hangs: got %v, want ETIMEDOUT", err)
	}
	if n, err := withinGuard(t.Context(), &g, other, quick, nil); n != 7 || err != nil {
		t.Errorf("an act on another machine: got %d, %v", n, err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := withinGuard(cancelled, &g, other, hang, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that has left: got %v", err)
	}
	close(answer)
	for start := time.Now(); ; <-time.After(time.Millisecond) {
		g.mu.Lock()
		left := len(g.machines)
		g.mu.Unlock()
		if left == 0 && len(g.all) == 0 {
			break
		}
		if time.Since(start) > 10*time.Second {
			t.Fatalf("%d machines and %d acts are left", left, len(g.all))
		}
	}
	if n, err := withinGuard(t.Context(), &g, self, quick, nil); n != 7 || err != nil {
		t.Errorf("after all: got %d, %v", n, err)
	}
	if discarded.Load() == 0 {
		t.Error("nothing of what came too late was discarded")
	}
}
