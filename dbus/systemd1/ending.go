package systemd1

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"machined/internal/unit"
)

// endingPatience is how long a scope that nobody is in may take to go away, and
// dyingPatience how long its last processes may take to die.
const (
	endingPatience = 5 * time.Second
	dyingPatience  = 500 * time.Millisecond
)

// outlast waits until PID 1 has forgotten a scope that has come to its end: the
// same machine may be started again faster than that. It returns false when the
// scope is in use.
func (b *Backend) outlast(ctx context.Context, name string) bool {
	gone := make(chan struct{})
	b.mu.Lock()
	b.leaving[name] = append(b.leaving[name], gone)
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		rest := b.leaving[name][:0]
		for _, c := range b.leaving[name] {
			if c != gone {
				rest = append(rest, c)
			}
		}
		if b.leaving[name] = rest; len(rest) == 0 {
			delete(b.leaving, name)
		}
	}()
	path, err := b.controlGroup(ctx, name)
	if isError(err, noSuchUnit, unknownObject) {
		return true
	}
	patience := endingPatience
	if err == nil && path != "" && populated(path) {
		patience = dyingPatience
	} else if err := b.finish(ctx, name); err != nil {
		return false
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-gone:
		return true
	case <-timeout.C:
	case <-ctx.Done():
	}
	return false
}

// populated tells whether a unit's cgroup has processes (cgroup-v2 of the kernel,
// cgroup.events); one that is gone has none.
func populated(unitCgroup string) bool {
	for _, root := range cgroupRoots {
		data, err := os.ReadFile(filepath.Join(root, unitCgroup, "cgroup.events"))
		if err == nil && strings.Contains("\n"+string(data), "\npopulated 1") {
			return true
		}
	}
	return false
}

// lingering is how long a scope may be there after its machine.
const lingering = 250 * time.Millisecond

// Release sees to it that a scope goes away with its machine. PID 1 misses the
// end of the last process now and then: the kernel holds back a second message
// of cgroup.events that follows another within 10 ms, and loses it when the
// cgroup is as it was before.
func (b *Backend) Release(_ context.Context, name string) error {
	time.AfterFunc(lingering, func() {
		path := filepath.Join("/", b.prefix, unit.Slice, name)
		if !strings.HasSuffix(name, ".scope") || !exists(path) || populated(path) {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), endingPatience)
		defer cancel()
		if cg, err := b.controlGroup(ctx, name); err == nil && cg == path && !populated(path) {
			_ = b.finish(ctx, name)
		}
	})
	return nil
}

// finish stops a scope without processes. While it has a controller PID 1 leaves
// that to it and waits, also when the controller is gone itself.
func (b *Backend) finish(ctx context.Context, name string) error {
	_ = b.call(ctx, "AbandonScope", name).Err // fails on one that is not running
	return b.Stop(ctx, name)
}

func exists(unitCgroup string) bool {
	for _, root := range cgroupRoots {
		if _, err := os.Stat(filepath.Join(root, unitCgroup, "cgroup.events")); err == nil {
			return true
		}
	}
	return false
}

// left wakes who waits for a unit's end.
func (b *Backend) left(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, gone := range b.leaving[name] {
		close(gone)
	}
	delete(b.leaving, name)
}
