package sys

import (
	"errors"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FileWatcher calls back when something happens to a watched file: one inotify
// instance and one goroutine, whatever the number of files (inotify(7)).
type FileWatcher struct {
	file *os.File
	fd   int // of file, whose Fd method would make it blocking
	done chan struct{}

	mu   sync.Mutex
	byWD map[int32]func()
}

// NewFileWatcher makes a watcher; Close ends it.
func NewFileWatcher() (*FileWatcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	w := &FileWatcher{fd: fd, file: os.NewFile(uintptr(fd), "inotify"), done: make(chan struct{}), byWD: map[int32]func(){}}
	go w.run()
	return w, nil
}

// Add watches one file for the events of mask; the returned function ends that.
// f is called for each event, and also when events may have been lost, on the
// watcher's goroutine.
func (w *FileWatcher) Add(path string, mask uint32, f func()) (func(), error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	wd, err := unix.InotifyAddWatch(w.fd, path, mask)
	if err != nil {
		return nil, &os.PathError{Op: "watch", Path: path, Err: err}
	}
	w.byWD[int32(wd)] = f
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if _, ok := w.byWD[int32(wd)]; ok {
			delete(w.byWD, int32(wd))
			_, _ = unix.InotifyRmWatch(w.fd, uint32(wd))
		}
	}, nil
}

// Close ends the watcher; no callback runs afterwards.
func (w *FileWatcher) Close() {
	_ = w.file.Close()
	<-w.done
}

func (w *FileWatcher) run() {
	defer close(w.done)
	buf := make([]byte, 64*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for {
		n, err := w.file.Read(buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return
		}
		for off := 0; off+unix.SizeofInotifyEvent <= n; {
			ev := (*unix.InotifyEvent)(unsafe.Pointer(&buf[off]))
			off += unix.SizeofInotifyEvent + int(ev.Len)
			if ev.Mask&unix.IN_Q_OVERFLOW != 0 {
				w.all()
				continue
			}
			w.mu.Lock()
			f := w.byWD[ev.Wd]
			if ev.Mask&unix.IN_IGNORED != 0 {
				delete(w.byWD, ev.Wd)
			}
			w.mu.Unlock()
			if f != nil {
				f()
			}
		}
	}
}

// all is for when the kernel has dropped events.
func (w *FileWatcher) all() {
	w.mu.Lock()
	fs := make([]func(), 0, len(w.byWD))
	for _, f := range w.byWD {
		fs = append(fs, f)
	}
	w.mu.Unlock()
	for _, f := range fs {
		f()
	}
}
