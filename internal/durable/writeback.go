package durable

import (
	"os"
	"sync"
	"sync/atomic"
)

// writebackEvery is how many bytes of a tree may wait in memory before the disk
// is given work.
const writebackEvery = 128 << 20

// Writeback writes a tree to the disk while it is still being made, so that there
// is little left to wait for in the end.
type Writeback struct {
	dir     *os.File
	pending atomic.Int64
	busy    atomic.Bool
	group   sync.WaitGroup
	mu      sync.Mutex
	err     error // the kernel tells an error once only: syncfs(2)
}

// NewWriteback returns one for what is made below dir, which stays the caller's and
// open until Wait has returned.
func NewWriteback(dir *os.File) *Writeback { return &Writeback{dir: dir} }

// Add tells of bytes that were written to files of the tree. It does not wait, and
// may be called from many goroutines.
func (w *Writeback) Add(bytes int64) {
	if w.pending.Add(bytes) < writebackEvery || !w.busy.CompareAndSwap(false, true) {
		return
	}
	w.pending.Store(0)
	w.group.Go(func() {
		defer w.busy.Store(false)
		if err := Tree(w.dir); err != nil {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.err = err
		}
	})
}

// Wait returns when nothing is written any more, with what went wrong so far. What
// was added last may still be in memory only: Tree comes next. Nothing may be added
// meanwhile. A nil Writeback has nothing to wait for.
func (w *Writeback) Wait() error {
	if w == nil {
		return nil
	}
	w.group.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}
