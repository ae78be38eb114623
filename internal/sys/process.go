// Package sys owns the kernel primitives that more than one part shares: a
// process held by its pidfd, facts about a process from /proc, paths opened
// beneath a foreign root, user namespace maps, mounts of the new mount API, and
// pseudo terminals. It knows nothing of machines, the bus or configuration.
package sys

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// pidfsMagic is the f_type of pidfs (Linux 6.9), on which a pidfd's inode
// number is unique for one boot.
const pidfsMagic = 0x50494446

// Process is one process, held by a pidfd, so that it can't be mistaken for a
// later one with the same PID. It is safe for concurrent use; Close it once.
type Process struct {
	pid   int
	fdid  uint64
	start uint64

	mu   sync.Mutex
	file *os.File // nil: closed
	exit chan struct{}
}

// OpenProcess pins the process pid. It returns an error that is unix.ESRCH when
// there is no such process or when it has ended already.
func OpenProcess(pid int) (*Process, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("open process %d: %w", pid, unix.ESRCH)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		// EINVAL: the number is a thread, not a process (pidfd_open(2)).
		if errors.Is(err, unix.EINVAL) {
			err = unix.ESRCH
		}
		return nil, fmt.Errorf("open process %d: %w", pid, os.NewSyscallError("pidfd_open", err))
	}
	return newProcess(fd, pid)
}

// FromPIDFD pins the process that fd, a pidfd, refers to. The caller keeps fd.
// It returns unix.EBADF for an fd that is no pidfd, and unix.ESRCH when the
// process has been reaped or is in no PID namespace below ours.
func FromPIDFD(fd int) (*Process, error) {
	pid, err := pidOfFD(fd)
	if err != nil {
		return nil, fmt.Errorf("pin process of file descriptor %d: %w", fd, err)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("pin process %d: %w", pid, os.NewSyscallError("fcntl", err))
	}
	return newProcess(dup, pid)
}

// newProcess takes over fd.
func newProcess(fd, pid int) (*Process, error) {
	p := &Process{pid: pid, file: os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(pid))}
	p.fdid = pidfdID(fd)
	start, err := startTime(pid)
	if err != nil || !p.signalable() {
		p.Close()
		return nil, fmt.Errorf("open process %d: %w", pid, unix.ESRCH)
	}
	p.start = start
	return p, nil
}

// pidOfFD reads the PID of a pidfd from its fdinfo (pidfd_open(2)).
func pidOfFD(fd int) (int, error) {
	data, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, unix.EBADF
	}
	for line := range strings.Lines(string(data)) {
		value, ok := strings.CutPrefix(line, "Pid:")
		if !ok {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(value))
		if err != nil {
			return 0, unix.EBADF
		}
		if pid <= 0 {
			return 0, unix.ESRCH
		}
		return pid, nil
	}
	return 0, unix.EBADF
}

func pidfdID(fd int) uint64 {
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil || uint64(fs.Type) != pidfsMagic {
		return 0
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0
	}
	return st.Ino
}

// PID is the process's number in our PID namespace.
func (p *Process) PID() int { return p.pid }

// FDID is the pidfd's inode number on pidfs, unique for one boot; 0 where the
// kernel has no pidfs.
func (p *Process) FDID() uint64 { return p.fdid }

// StartTime is when the process started, in clock ticks since boot
// (proc_pid_stat(5), field 22).
func (p *Process) StartTime() uint64 { return p.start }

// FD returns the pidfd, -1 after Close. It stays owned by p.
func (p *Process) FD() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return -1
	}
	return int(p.file.Fd())
}

// with runs f with the pidfd and keeps Close away meanwhile.
func (p *Process) with(f func(fd int) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return os.ErrClosed
	}
	return f(int(p.file.Fd()))
}

// Signal sends sig; unix.ESRCH when the process has ended and been reaped.
func (p *Process) Signal(sig unix.Signal) error {
	err := p.with(func(fd int) error { return unix.PidfdSendSignal(fd, sig, nil, 0) })
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	return nil
}

func (p *Process) signalable() bool {
	err := p.with(func(fd int) error { return unix.PidfdSendSignal(fd, 0, nil, 0) })
	return err == nil || errors.Is(err, unix.EPERM)
}

// Alive reports whether the process still runs; a zombie doesn't.
func (p *Process) Alive() bool {
	alive := false
	_ = p.with(func(fd int) error {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(fds, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			alive = err == nil && n == 0
			return nil
		}
	})
	return alive
}

// Dup returns a second handle on the same process; the caller closes it.
func (p *Process) Dup() (*Process, error) {
	dup := -1
	err := p.with(func(fd int) error {
		var err error
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("duplicate handle of process %d: %w", p.pid, err)
	}
	return &Process{
		pid: p.pid, fdid: p.fdid, start: p.start,
		file: os.NewFile(uintptr(dup), "pidfd:"+strconv.Itoa(p.pid)),
	}, nil
}

// Close lets the process go. Channels from Exited then never close.
func (p *Process) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return
	}
	if p.exit != nil {
		watcher.remove(int(p.file.Fd()))
	}
	_ = p.file.Close()
	p.file = nil
}

// Exited returns a channel that closes when the process ends (as a zombie too).
func (p *Process) Exited() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exit != nil {
		return p.exit
	}
	p.exit = make(chan struct{})
	if p.file == nil {
		return p.exit
	}
	if err := watcher.add(int(p.file.Fd()), p.exit); err != nil {
		// No epoll: one goroutine with a descriptor of its own waits instead.
		dup, derr := unix.FcntlInt(p.file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if derr != nil {
			return p.exit
		}
		go func(ch chan struct{}) {
			defer unix.Close(dup)
			fds := []unix.PollFd{{Fd: int32(dup), Events: unix.POLLIN}}
			for {
				if n, err := unix.Poll(fds, -1); err == nil && n > 0 {
					close(ch)
					return
				} else if err != nil && !errors.Is(err, unix.EINTR) {
					return
				}
			}
		}(p.exit)
	}
	return p.exit
}
