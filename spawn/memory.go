package spawn

import (
	"bufio"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
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
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close()
	for _, m := range codeMappings(bufio.NewScanner(f), "/proc/self/exe") {
		_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
	}
}

type mapping struct{ start, end uintptr }

// codeMappings are the mappings of the program's file that nothing was ever
// written to, neither by the program nor by its loader: they can be dropped
// without loss (proc_pid_smaps(5), "Anonymous").
func codeMappings(smaps *bufio.Scanner, exe string) []mapping {
	name, err := os.Readlink(exe)
	if err != nil {
		return nil
	}
	var out []mapping
	var current mapping
	candidate := false
	for smaps.Scan() {
		fields := strings.Fields(smaps.Text())
		switch {
		case len(fields) >= 5 && len(fields[1]) == 4 && !strings.HasSuffix(fields[0], ":"):
			from, to, _ := strings.Cut(fields[0], "-")
			start, err1 := strconv.ParseUint(from, 16, int(unsafe.Sizeof(uintptr(0))*8))
			end, err2 := strconv.ParseUint(to, 16, int(unsafe.Sizeof(uintptr(0))*8))
			current = mapping{uintptr(start), uintptr(end)}
			candidate = err1 == nil && err2 == nil && start < end && len(fields) == 6 && fields[5] == name &&
				fields[1][1] == '-' && fields[1][3] == 'p'
		case candidate && len(fields) == 3 && fields[0] == "Anonymous:" && fields[1] == "0":
			out = append(out, current)
			candidate = false
		}
	}
	return out
}
