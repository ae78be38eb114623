// Package ptyfwd connects the terminal of a person with the master side of a
// PTY: raw mode, window size, hotkeys, and draining at the end. It serves the
// consoles of the spawner and of machinectl login and shell.
//
// It owns neither file: callers close them. It never allocates a PTY and never
// signals a process; what a hotkey does is its caller's business.
package ptyfwd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

const (
	// chunk is how much is read at once; PIPE_BUF, so that a write to a pipe
	// that is ready takes it whole.
	chunk = 4096
	// inputLimit bounds what was typed and not yet taken by the machine. Beyond
	// it stdin is left alone. It is large, so that the hotkeys still work while
	// the machine does not read.
	inputLimit = 64 << 10
	// drainPatience is how long output may be stuck at the end before it is
	// dropped.
	drainPatience = time.Second
)

// Options says what a Forwarder is to do. The zero value relays os.Stdin and
// os.Stdout until the PTY hangs up.
type Options struct {
	// Stdin and Stdout are the person's side. Nil means os.Stdin, os.Stdout.
	Stdin, Stdout *os.File
	// ReadOnly forwards output only; stdin is not read and no terminal mode
	// is changed.
	ReadOnly bool
	// IgnoreVHangup goes on when nobody has the other side open, as the console
	// of a machine that runs many gettys needs it. See SetIgnoreVHangup.
	IgnoreVHangup bool
	// IgnoreInitialVHangup goes on without an other side only until the first
	// output has come.
	IgnoreInitialVHangup bool
	// IgnoreStdinEOF goes on after the end of stdin, until the PTY hangs up.
	// Without it the end of stdin ends the forwarding, as it does in stock.
	IgnoreStdinEOF bool
	// KeepLastLine leaves an unfinished last line alone. Otherwise a newline
	// follows it, when anything was written.
	KeepLastLine bool
	// Terminals are those that an earlier Forwarder, which was detached, has left in
	// raw mode; nil: none.
	Terminals []Terminal
	// LastByte is the last byte of output of that Forwarder.
	LastByte byte
	// OnHotkey is called, on the goroutine of Run, for each reboot or poweroff
	// hotkey. Nil turns those two off; Ctrl-] three times always disconnects.
	OnHotkey func(Hotkey)
}

// Result says how the forwarding ended.
type Result struct {
	// Disconnected is set after Ctrl-] three times.
	Disconnected bool
	// Hangup is set when the other side of the PTY is gone for good.
	Hangup bool
	// StdinEOF is set when the end of stdin ended it, StdoutClosed when nobody
	// reads stdout any more.
	StdinEOF, StdoutClosed bool
	// Detached is set after Detach. Terminals are what the next Forwarder needs then.
	Detached  bool
	Terminals []Terminal
	// LastByte is the last byte of output, 0 if there was none; a newline that
	// was added does not count.
	LastByte byte
}

// Forwarder is one connection. Use it for one Run.
type Forwarder struct {
	opts   Options
	master int
	stdin  int
	stdout int

	ignoreVHangup atomic.Bool
	detach        atomic.Bool
	moved         atomic.Uint64 // how often something was passed on
	wakeFD        int           // eventfd
	epollFD       int           // the master, edge triggered

	scan   scanner
	result Result

	in, out                        []byte
	masterReadable, masterWritable bool
	masterHangup                   bool
	stdinDone, stdoutDone          bool
	gotOutput                      bool
	undo                           []func()
	terminals                      []Terminal

	closeOnce sync.Once
}

// Forward relays between master and the person's side until one of them ends,
// a disconnect is typed, or ctx is done; what the machine has written by then is
// still passed on.
func Forward(ctx context.Context, master *os.File, opts Options) (Result, error) {
	f, err := New(master, opts)
	if err != nil {
		return Result{}, err
	}
	return f.Run(ctx)
}

// Pollable tells whether a file can be waited for (epoll(7)): terminals, pipes and
// sockets can, files and /dev/null can't.
func Pollable(f *os.File) bool {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, int(f.Fd()), &unix.EpollEvent{Events: unix.EPOLLIN}) == nil
}

// New prepares a connection; it changes nothing but O_NONBLOCK of master. Run
// must follow, or Close.
func New(master *os.File, opts Options) (*Forwarder, error) {
	if opts.Stdin == nil {
		opts.Stdin = os.Stdin
	}
	if opts.Stdout == nil {
		opts.Stdout = os.Stdout
	}
	f := &Forwarder{opts: opts, wakeFD: -1, epollFD: -1, masterReadable: true, masterWritable: true}
	f.ignoreVHangup.Store(opts.IgnoreVHangup)
	f.terminals, f.result.LastByte = opts.Terminals, opts.LastByte
	f.scan.verbs = opts.OnHotkey != nil
	f.master, f.stdin, f.stdout = int(master.Fd()), int(opts.Stdin.Fd()), int(opts.Stdout.Fd())
	if err := unix.SetNonblock(f.master, true); err != nil {
		return nil, fmt.Errorf("forward pty: %w", os.NewSyscallError("fcntl", err))
	}
	var err error
	if f.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("forward pty: %w", os.NewSyscallError("eventfd", err))
	}
	if f.epollFD, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		f.Close()
		return nil, fmt.Errorf("forward pty: %w", os.NewSyscallError("epoll_create1", err))
	}
	// Edge triggered: while nobody has the other side open the master is in
	// permanent hangup, and anything else would spin.
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET, Fd: int32(f.master)}
	if err := unix.EpollCtl(f.epollFD, unix.EPOLL_CTL_ADD, f.master, &ev); err != nil {
		f.Close()
		return nil, fmt.Errorf("forward pty: %w", os.NewSyscallError("epoll_ctl", err))
	}
	return f, nil
}

// SetIgnoreVHangup changes Options.IgnoreVHangup while Run runs: false ends it
// at the next hangup, or now if the other side is gone already. Safe for
// concurrent use until Run has returned.
func (f *Forwarder) SetIgnoreVHangup(on bool) {
	f.ignoreVHangup.Store(on)
	f.wake()
}

// Moved tells how often something was passed on: it is the same number as long as
// nobody types and the machine writes nothing. Safe for concurrent use.
func (f *Forwarder) Moved() uint64 { return f.moved.Load() }

// Detach asks Run to end as soon as nothing is left to be passed on, and to leave
// terminals in raw mode, so that another Forwarder can go on, in this process or in what
// it executes. With false the wish is taken back, if Run has not followed it by then.
func (f *Forwarder) Detach(on bool) {
	f.detach.Store(on)
	f.wake()
}

// Watch is a descriptor that becomes readable when the machine writes to the PTY, or
// lets go of it: for who waits between two Forwarders. Ready tells that there is
// something already. The caller closes the descriptor.
func Watch(master *os.File) (fd int, ready bool, err error) {
	if fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return -1, false, fmt.Errorf("watch pty: %w", os.NewSyscallError("epoll_create1", err))
	}
	// As in New: a hangup that lasts must not count again and again.
	ev := []unix.EpollEvent{{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(master.Fd())}}
	if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, int(ev[0].Fd), &ev[0]); err != nil {
		_ = unix.Close(fd)
		return -1, false, fmt.Errorf("watch pty: %w", os.NewSyscallError("epoll_ctl", err))
	}
	n, err := unix.EpollWait(fd, ev, 0)
	return fd, err != nil || n > 0 && ev[0].Events&unix.EPOLLIN != 0, nil
}

// Close frees what New allocated. Run does it by itself.
func (f *Forwarder) Close() {
	f.closeOnce.Do(func() {
		if f.wakeFD >= 0 {
			unix.Close(f.wakeFD)
		}
		if f.epollFD >= 0 {
			unix.Close(f.epollFD)
		}
	})
}

func (f *Forwarder) wake() {
	var one = [8]byte{1}
	_, _ = unix.Write(f.wakeFD, one[:])
}

// Run relays until the end and restores the terminal. It returns an error only
// for a failure of the relaying itself; why it ended is in the Result.
func (f *Forwarder) Run(ctx context.Context) (Result, error) {
	defer f.Close()
	defer f.restore()
	if err := f.prepare(); err != nil {
		return f.result, err
	}
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, unix.SIGWINCH)
	var resized, done atomic.Bool
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-winch:
				resized.Store(true)
			case <-ctx.Done():
				done.Store(true)
				f.wake()
				return
			case <-stop:
				return
			}
			f.wake()
		}
	})
	defer wg.Wait()
	defer close(stop)
	defer signal.Stop(winch)

	f.copyWindowSize()
	for {
		if resized.Swap(false) {
			f.copyWindowSize()
		}
		if done.Load() {
			return f.finish()
		}
		if err := f.shovel(); err != nil {
			return f.result, err
		}
		if f.ended() {
			return f.finish()
		}
		if f.detach.Load() && len(f.in) == 0 && len(f.out) == 0 && !f.stdinDone {
			f.result.Detached, f.result.Terminals, f.terminals = true, f.terminals, nil
			return f.result, nil
		}
		if err := f.wait(); err != nil {
			return f.result, err
		}
	}
}

// ended applies stock's rule: any side gone, and nothing left that could still
// be passed on.
func (f *Forwarder) ended() bool {
	if f.result.Disconnected || f.stdoutDone {
		return true
	}
	if f.masterHangup && !f.tolerated() {
		f.result.Hangup = true
		return len(f.out) == 0
	}
	if f.stdinDone && !f.opts.IgnoreStdinEOF && len(f.in) == 0 && len(f.out) == 0 && !f.masterReadable {
		f.result.StdinEOF = true
		return true
	}
	return false
}

func (f *Forwarder) tolerated() bool {
	return f.ignoreVHangup.Load() || f.opts.IgnoreInitialVHangup && !f.gotOutput
}

// shovel moves what can be moved without waiting.
func (f *Forwarder) shovel() error {
	for progress := true; progress; {
		progress = false
		for f.masterReadable && len(f.out) < chunk && !f.stdoutDone {
			n, err := f.readMaster()
			if err != nil {
				return err
			}
			if n == 0 {
				break
			}
			progress = true
		}
		if len(f.out) > 0 {
			n, err := f.writeOut()
			if err != nil {
				return err
			}
			progress = progress || n > 0
		}
		if len(f.in) > 0 && f.masterWritable {
			n, err := f.writeMaster()
			if err != nil {
				return err
			}
			progress = progress || n > 0
		}
	}
	return nil
}

func (f *Forwarder) readMaster() (int, error) {
	var buf [chunk]byte
	n, err := unix.Read(f.master, buf[:])
	switch {
	case err == nil && n > 0:
		f.masterHangup = false
		f.gotOutput = true
		f.moved.Add(1)
		f.out = append(f.out, buf[:n]...)
		return n, nil
	case errors.Is(err, unix.EINTR):
		return f.readMaster()
	case errors.Is(err, unix.EAGAIN):
		f.masterReadable, f.masterHangup = false, false
		return 0, nil
	case err == nil, errors.Is(err, unix.EIO), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		// vhangup(2), or the last one closed it: may be opened again
		f.masterReadable, f.masterHangup = false, true
		return 0, nil
	default:
		return 0, fmt.Errorf("forward pty: read master: %w", os.NewSyscallError("read", err))
	}
}

func (f *Forwarder) writeMaster() (int, error) {
	n, err := unix.Write(f.master, f.in)
	switch {
	case err == nil:
		f.in = f.in[:copy(f.in, f.in[n:])]
		return n, nil
	case errors.Is(err, unix.EINTR):
		return 0, nil
	case errors.Is(err, unix.EAGAIN):
		f.masterWritable = false
		return 0, nil
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		f.masterWritable = false
		f.in = f.in[:0] // nobody is there to read it
		return 0, nil
	default:
		return 0, fmt.Errorf("forward pty: write master: %w", os.NewSyscallError("write", err))
	}
}

func (f *Forwarder) writeOut() (int, error) {
	n, err := unix.Write(f.stdout, f.out)
	switch {
	case err == nil:
		if n > 0 {
			f.result.LastByte = f.out[n-1]
		}
		f.out = f.out[:copy(f.out, f.out[n:])]
		return n, nil
	case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		return 0, nil
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EIO), errors.Is(err, unix.ECONNRESET):
		f.stdoutDone, f.result.StdoutClosed = true, true
		f.out = nil
		return 0, nil
	default:
		return 0, fmt.Errorf("forward pty: write output: %w", os.NewSyscallError("write", err))
	}
}

// readStdin takes what was typed. It is called when stdin is readable.
func (f *Forwarder) readStdin() error {
	var buf [chunk]byte
	n, err := unix.Read(f.stdin, buf[:])
	switch {
	case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		return nil
	case err == nil && n == 0, errors.Is(err, unix.EIO), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		f.stdinDone = true
		return nil
	case err != nil:
		return fmt.Errorf("forward pty: read input: %w", os.NewSyscallError("read", err))
	}
	f.moved.Add(1)
	for b := buf[:n]; len(b) > 0; {
		key, used := f.scan.scan(b, time.Now())
		switch key {
		case HotkeyNone:
			f.in = append(f.in, b[:used]...)
		case HotkeyDisconnect:
			f.result.Disconnected = true
			return nil
		default:
			f.in = append(f.in, b[:used-1]...)
			f.opts.OnHotkey(key)
		}
		b = b[used:]
	}
	return nil
}

// wait blocks until something can be moved.
func (f *Forwarder) wait() error {
	fds := []unix.PollFd{{Fd: int32(f.wakeFD), Events: unix.POLLIN}, {Fd: int32(f.epollFD), Events: unix.POLLIN}}
	inAt, outAt := -1, -1
	if !f.opts.ReadOnly && !f.stdinDone && len(f.in) < inputLimit {
		inAt = len(fds)
		fds = append(fds, unix.PollFd{Fd: int32(f.stdin), Events: unix.POLLIN})
	}
	// No interest but errors while there is nothing to write: a closed reader
	// is noticed at once.
	outAt = len(fds)
	out := unix.PollFd{Fd: int32(f.stdout)}
	if len(f.out) > 0 {
		out.Events = unix.POLLOUT
	}
	fds = append(fds, out)
	for {
		_, err := unix.Poll(fds, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("forward pty: %w", os.NewSyscallError("poll", err))
		}
		break
	}
	if fds[0].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(f.wakeFD, count[:])
	}
	if fds[1].Revents != 0 {
		var ev [4]unix.EpollEvent
		n, err := unix.EpollWait(f.epollFD, ev[:], 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("forward pty: %w", os.NewSyscallError("epoll_wait", err))
		}
		for i := range max(n, 0) {
			if ev[i].Events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
				f.masterReadable = true
			}
			if ev[i].Events&unix.EPOLLOUT != 0 {
				f.masterWritable = true
			}
		}
	}
	if inAt >= 0 && fds[inAt].Revents != 0 {
		if err := f.readStdin(); err != nil {
			return err
		}
	}
	if r := fds[outAt].Revents; r&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0 && r&unix.POLLOUT == 0 {
		f.stdoutDone, f.result.StdoutClosed = true, true
	}
	return nil
}

// finish passes on what the machine has written so far. Output that nobody takes
// for drainPatience is dropped: a stopped terminal must not keep a machine.
func (f *Forwarder) finish() (Result, error) {
	f.masterReadable = true
	for !f.stdoutDone {
		if err := f.shovel(); err != nil {
			return f.result, err
		}
		if len(f.out) == 0 || f.result.Disconnected {
			break
		}
		fds := []unix.PollFd{{Fd: int32(f.stdout), Events: unix.POLLOUT}}
		n, err := unix.Poll(fds, int(drainPatience/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			break
		}
	}
	if b := f.result.LastByte; !f.opts.KeepLastLine && !f.stdoutDone && b != 0 && b != '\n' {
		line := "\n"
		if term.IsTerminal(f.stdout) {
			line = "\r\n" // raw mode is still on
		}
		_, _ = unix.Write(f.stdout, []byte(line))
	}
	return f.result, nil
}
