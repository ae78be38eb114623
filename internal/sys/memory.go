package sys

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DropCode takes the program's code and constants out of this process's memory. What
// is needed again comes from the page cache: it is for who has started and now waits.
func DropCode() {
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
