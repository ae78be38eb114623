package spawn

import (
	"runtime/debug"
	"sync"
	"time"

	"machined/internal/sys"
)

// settleAfter is how long a machine runs before its supervisor gives memory
// back: one that is over sooner isn't worth the work.
const settleAfter = 2 * time.Second

// settling is the next time that memory is given back after a program has run.
var settling = sync.OnceValue(func() *time.Timer { return time.AfterFunc(settleAfter, settle) })

// settleSoon gives memory back when nothing has been asked for a while.
func settleSoon() { settling().Reset(settleAfter) }

// settle gives back the memory that only starting a machine needed: the heap, and
// the program's code, of which a waiting supervisor runs little. What is needed
// again comes from the page cache.
func settle() {
	debug.FreeOSMemory()
	sys.DropCode()
}
