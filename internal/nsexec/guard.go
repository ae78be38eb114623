package nsexec

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

const (
	// fileTimeout bounds an act on a machine's file system, which may be a FUSE
	// mount of the machine that never answers.
	fileTimeout = 5 * time.Second
	// maxActs is how many threads of ours may be in one machine's file system at
	// once, and so how many a hostile machine can keep.
	maxActs = 4
	// maxAllActs is the same for all machines together. It stays well below the
	// TasksMax= of the unit: a Go program that gets no more threads dies.
	maxAllActs = 256
)

// acts holds back who wants to act on the file system of a machine that does
// not answer: a thread that hangs in the kernel can't be called back, so each
// machine gets a few, and none more while one of them hangs. It ends with the
// machine, since the kernel fails all that waits for a FUSE server that is gone.
var acts = guard{machines: map[uint64]*crew{}, all: make(chan struct{}, maxAllActs), timeout: fileTimeout}

type guard struct {
	all     chan struct{}
	timeout time.Duration

	mu       sync.Mutex
	machines map[uint64]*crew // by start time and PID of the leader
}

// crew is who acts on one machine's file system. The counts are guarded by
// guard.mu.
type crew struct {
	slots chan struct{}
	users int // who waits and who acts
	hung  int // who acts and is waited for no more
}

func (g *guard) join(key uint64) *crew {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.machines[key]
	if c == nil {
		c = &crew{slots: make(chan struct{}, maxActs)}
		g.machines[key] = c
	}
	c.users++
	return c
}

// leave gives a slot back, if there is one, and forgets a crew without users.
func (g *guard) leave(key uint64, c *crew) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.users--; c.users == 0 {
		delete(g.machines, key)
	}
}

func (g *guard) hangs(c *crew) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return c.hung > 0
}

// within runs f, which acts on the file system of the machine whose leader is p,
// on a goroutine of its own, and gives up after a while or with ctx: the error
// is unix.ETIMEDOUT then. The context of f ends when nobody waits any more; what
// f returns too late is given to discard. f gets a handle on p of its own.
func within[T any](ctx context.Context, p *sys.Process, f func(ctx context.Context, p *sys.Process) (T, error), discard func(T)) (T, error) {
	return withinGuard(ctx, &acts, p, f, discard)
}

func withinGuard[T any](ctx context.Context, g *guard, p *sys.Process, f func(ctx context.Context, p *sys.Process) (T, error), discard func(T)) (T, error) {
	var none T
	failed := func(err error) (T, error) {
		return none, fmt.Errorf("act on file system of process %d: %w", p.PID(), err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, g.timeout, unix.ETIMEDOUT)
	defer cancel()
	key := p.StartTime()<<22 | uint64(p.PID())
	c := g.join(key)
	if g.hangs(c) {
		g.leave(key, c)
		return failed(unix.ETIMEDOUT)
	}
	for _, slots := range []chan struct{}{c.slots, g.all} {
		select {
		case slots <- struct{}{}:
			continue
		case <-ctx.Done():
		}
		if slots == g.all {
			<-c.slots
		}
		g.leave(key, c)
		return failed(context.Cause(ctx))
	}
	release := func() {
		<-g.all
		<-c.slots
		g.leave(key, c)
	}
	if g.hangs(c) { // since we have waited
		release()
		return failed(unix.ETIMEDOUT)
	}
	own, err := p.Dup()
	if err != nil {
		release()
		return none, err
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result)
	over := make(chan struct{}) // nobody reads done any more
	go func() {
		defer own.Close()
		value, err := f(ctx, own)
		select {
		case done <- result{value, err}:
			release()
		case <-over:
			g.mu.Lock()
			c.hung--
			g.mu.Unlock()
			release()
			if err == nil && discard != nil {
				discard(value)
			}
		}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	g.mu.Lock()
	c.hung++
	g.mu.Unlock()
	close(over)
	return failed(context.Cause(ctx))
}
