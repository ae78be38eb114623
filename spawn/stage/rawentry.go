package stage

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A process with several threads can't join a user namespace (setns(2)), and every
// Go program has several. So the program that joins is a fork of this one, which
// has the one thread that called fork, and of Go's runtime nothing that works: it
// carries out a list of system calls that was written before, and allocates,
// waits for, and locks nothing.

// rawCall is one system call of that list.
type rawCall struct {
	nr   uintptr
	args [6]uintptr
	mode rawMode
	what string // for people
}

type rawMode uint8

const (
	rawMust  rawMode = iota // an error ends the process
	rawTry                  // an error changes nothing
	rawClone                // a clone(2): the child goes on, the parent tells of it and exits
	rawExec                 // an execve(2): what is not there is passed over
)

// rawList is such a list, and what it points to.
type rawList struct {
	calls  []rawCall
	keep   []any
	report int // pipe for what becomes of it, closed by the execution
	cgroup int // directory in which the process is born, -1: ours
}

func (l *rawList) add(mode rawMode, what string, nr uintptr, args ...uintptr) {
	c := rawCall{nr: nr, mode: mode, what: what}
	copy(c.args[:], args)
	l.calls = append(l.calls, c)
}

// hold keeps what a pointer in the list points to.
func hold[T any](l *rawList, p *T) uintptr {
	l.keep = append(l.keep, p)
	return uintptr(unsafe.Pointer(p))
}

func (l *rawList) text(s string) (uintptr, error) {
	p, err := unix.BytePtrFromString(s)
	if err != nil {
		return 0, err
	}
	return hold(l, p), nil
}

func (l *rawList) texts(list []string) (uintptr, error) {
	p, err := syscall.SlicePtrFromStrings(list)
	if err != nil {
		return 0, err
	}
	l.keep = append(l.keep, p)
	return uintptr(unsafe.Pointer(&p[0])), nil
}

// rawReport is what the process writes: the number of a call that failed and why,
// or that of the clone and the PID that came of it.
type rawReport struct{ call, value uint32 }

// cloneArgs is struct clone_args of clone3(2), up to cgroup.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

const cloneIntoCgroup = 0x200000000

// errRawExec is a failed execution, with its errno beneath.
var errRawExec = errors.New("execute")

// start forks, and returns the PID of the process that has executed a program: our
// child, to be waited for. The thread must be locked.
func (l *rawList) start() (int, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(p[0])
	l.report = p[1]
	args := &cloneArgs{exitSignal: uint64(unix.SIGCHLD)}
	if l.cgroup >= 0 {
		args.flags, args.cgroup = cloneIntoCgroup, uint64(l.cgroup)
	}
	out := new(rawReport)
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	// No handler of Go's may run in the child.
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		_ = unix.Close(p[1])
		return 0, os.NewSyscallError("sigprocmask", err)
	}
	first, errno := l.fork(args, out)
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
	_ = unix.Close(p[1])
	runtime.KeepAlive(l)
	if errno != 0 {
		return 0, os.NewSyscallError("clone3", errno)
	}
	return l.result(first, p[0])
}

// fork is the only place where the child runs.
//
//go:noinline
//go:norace
//go:nocheckptr
//go:nosplit
func (l *rawList) fork(args *cloneArgs, out *rawReport) (pid int, errno syscall.Errno) {
	r, _, e := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if r != 0 || e != 0 {
		return int(r), e
	}
	missing := syscall.Errno(0)
	for i := 0; i < len(l.calls); i++ {
		c := &l.calls[i]
		r, _, e := syscall.RawSyscall6(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
		switch {
		case c.mode == rawClone && e == 0 && r != 0:
			out.call, out.value = uint32(i), uint32(r)
			_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, uintptr(l.report), uintptr(unsafe.Pointer(out)), unsafe.Sizeof(*out))
			_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		case e == 0 || c.mode == rawTry:
			continue
		case c.mode == rawExec && (e == syscall.ENOENT || e == syscall.ENOTDIR || e == syscall.EACCES):
			if e == syscall.EACCES || missing == 0 {
				missing = e
			}
			if i+1 < len(l.calls) {
				continue
			}
			e = missing
		}
		out.call, out.value = uint32(i), uint32(e)
		_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, uintptr(l.report), uintptr(unsafe.Pointer(out)), unsafe.Sizeof(*out))
		break
	}
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}

// result reads what became of the process that was forked first. Only the one that
// it cloned, with us as its parent, remains.
func (l *rawList) result(first, pipe int) (int, error) {
	reap := func(pid int) {
		for {
			if _, err := unix.Wait4(pid, nil, unix.WALL, nil); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}
	pid, failed := 0, error(nil)
	var r rawReport
	buf := unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r))
	for {
		n, err := unix.Read(pipe, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n != len(buf) || int(r.call) >= len(l.calls) {
			break
		}
		c := l.calls[r.call]
		switch errno := syscall.Errno(r.value); {
		case c.mode == rawClone && pid == 0 && failed == nil:
			pid = int(r.value)
		case c.mode == rawExec:
			failed = fmt.Errorf("%w %s: %w", errRawExec, c.what, errno)
		default:
			failed = fmt.Errorf("%s: %w", c.what, errno)
		}
	}
	reap(first)
	if failed == nil && pid == 0 {
		failed = errors.New("the machine ended meanwhile")
	}
	if failed != nil && pid != 0 {
		reap(pid)
	}
	return pid, failed
}
