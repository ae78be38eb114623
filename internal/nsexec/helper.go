package nsexec

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/treecopy"
)

// Main is the entry of the helper processes: call it first in main. It returns
// at once when this is no helper, and never when it is.
func Main() {
	if len(os.Args) == 1 && os.Args[0] == helperName {
		os.Exit(copyMain())
	}
}

// copyMain does one copy. All who make files are threads whose file system IDs are
// set.
func copyMain() int {
	runtime.LockOSThread()
	control := bufio.NewReader(os.NewFile(3, "control"))
	out := &copyOutput{encoder: json.NewEncoder(os.Stdout)}
	line, err := control.ReadBytes('\n')
	var job copyJob
	if err == nil {
		err = json.Unmarshal(line, &job)
	}
	if err != nil {
		out.event(copyEvent{Error: "read copy job: " + err.Error()})
		return 1
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		// Ends when the owner closes its side, or dies.
		_, _ = io.Copy(io.Discard, control)
		stop()
		time.AfterFunc(stopGrace, func() { os.Exit(1) }) // it hangs in the kernel
	}()
	unix.Umask(0)
	enter := func() error { return takeFSIDs(job.FSUID, job.FSGID) }
	source, target := os.NewFile(4, "source"), os.NewFile(5, "target")
	var st unix.Stat_t
	if unix.Fstatat(4, job.From, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
		out.total = uint64(st.Size)
	}
	opts := treecopy.Options{Merge: true, Replace: job.Replace, Enter: enter, Progress: out.count}
	if o := job.Owner; o != nil {
		opts.Owner = func(_, _ uint32) (uint32, uint32) { return o.UID, o.GID }
	}
	if err = enter(); err == nil {
		err = treecopy.CopyEntry(ctx, source, job.From, target, job.To, opts)
	}
	if err == nil {
		out.event(copyEvent{Done: true, Bytes: out.bytes, Total: out.total})
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
	out.event(event)
	return 1
}

// copyOutput is where a copy tells its owner how far it is.
type copyOutput struct {
	mu       sync.Mutex
	encoder  *json.Encoder
	bytes    uint64
	total    uint64 // 0: not known
	reported time.Time
}

func (o *copyOutput) event(e copyEvent) { _ = o.encoder.Encode(e) }

// count tells the progress ten times a second.
func (o *copyOutput) count(n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bytes += uint64(n)
	if now := time.Now(); now.Sub(o.reported) > 100*time.Millisecond {
		o.reported = now
		o.event(copyEvent{Bytes: o.bytes, Total: o.total})
	}
}
