package nsexec

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Main is the entry of the helper processes: call it first in main. It returns
// at once when this is no helper, and never when it is.
func Main() {
	if len(os.Args) == 1 && os.Args[0] == helperName {
		os.Exit(copyMain())
	}
}

// copyMain does one copy. All file work happens on one thread, whose file
// system IDs are set.
func copyMain() int {
	runtime.LockOSThread()
	control := bufio.NewReader(os.NewFile(3, "control"))
	encoder := json.NewEncoder(os.Stdout)
	line, err := control.ReadBytes('\n')
	var job copyJob
	if err == nil {
		err = json.Unmarshal(line, &job)
	}
	if err != nil {
		_ = encoder.Encode(copyEvent{Error: "read copy job: " + err.Error()})
		return 1
	}
	c := &copier{job: job, buf: make([]byte, 256<<10), report: func(n, total uint64) { _ = encoder.Encode(copyEvent{Bytes: n, Total: total}) }}
	go func() {
		// Ends when the owner closes its side, or dies.
		_, _ = io.Copy(io.Discard, control)
		c.stop.Store(true)
		time.AfterFunc(stopGrace, func() { os.Exit(1) }) // it hangs in the kernel
	}()
	unix.Umask(0)
	err = takeFSIDs(job.FSUID, job.FSGID)
	if err == nil {
		err = c.entry(4, job.From, 5, job.To, "")
	}
	if err == nil {
		_ = encoder.Encode(copyEvent{Done: true, Bytes: c.bytes, Total: c.total})
		return 0
	}
	event := copyEvent{Error: err.Error()}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		event.Errno = int(errno)
		var pathErr *os.PathError
		if errors.As(err, &pathErr) {
			event.Error = pathErr.Op + " " + pathErr.Path
		}
	}
	_ = encoder.Encode(event)
	return 1
}

// procFD is the path of an open descriptor in /proc.
func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
