package transfer

import (
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// writebackEvery is how many bytes of a tree may wait in memory before the disk
// is given work.
const writebackEvery = 128 << 20

// writeback writes a tree to the disk while it is still unpacked, so that there
// is little left to wait for in the end.
type writeback struct {
	f       *os.File
	pending atomic.Int64
	busy    atomic.Bool
	group   sync.WaitGroup
	mu      sync.Mutex
	err     error // the kernel tells an error once only: syncfs(2)
}

// writer returns what Untar tells of the files that it has written; nil when
// the disk is left to the kernel.
func (e *engine) writer(b *building) func(bytes int64) {
	if e.NoSync {
		return nil
	}
	if b.sync == nil {
		b.sync = &writeback{f: b.f}
	}
	return b.sync.add
}

func (w *writeback) add(bytes int64) {
	if w.pending.Add(bytes) < writebackEvery || !w.busy.CompareAndSwap(false, true) {
		return
	}
	w.pending.Store(0)
	w.group.Go(func() {
		defer w.busy.Store(false)
		if err := unix.Syncfs(int(w.f.Fd())); err != nil {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.err = os.NewSyscallError("syncfs", err)
		}
	})
}

// wait returns when nothing is written any more, with what went wrong. No file
// may be added meanwhile.
func (w *writeback) wait() error {
	if w == nil {
		return nil
	}
	w.group.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}
