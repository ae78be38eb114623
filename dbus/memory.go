package dbus

import (
	"runtime/debug"
	"sync/atomic"
	"time"
)

const (
	// bigArgs is the size of arguments, in bytes, that leave a mark in memory.
	bigArgs = 1 << 20
	// releaseAfter is how long what they have left is kept for the next ones.
	releaseAfter = time.Second
)

// memory is what big messages leave behind.
type memory struct{ releasing atomic.Bool }

// releaseSoon gives memory back to the system a moment later: the run-time by
// itself would keep what one caller with big messages has made it take, for
// minutes.
func (m *memory) releaseSoon() {
	if !m.releasing.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(releaseAfter, func() {
		m.releasing.Store(false)
		debug.FreeOSMemory()
	})
}
