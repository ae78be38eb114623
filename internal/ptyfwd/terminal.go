package ptyfwd

import (
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Terminal is a terminal in raw mode, and how it was before.
type Terminal struct {
	FD     int
	Before []byte // struct termios
}

// enter notes a terminal whose mode is about to change.
func (f *Forwarder) enter(fd int, before *unix.Termios) {
	f.terminals = append(f.terminals, Terminal{fd, append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(before)), unsafe.Sizeof(*before))...)})
}

func (t Terminal) restore() {
	var before unix.Termios
	if len(t.Before) == int(unsafe.Sizeof(before)) {
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&before)), unsafe.Sizeof(before)), t.Before)
		_ = unix.IoctlSetTermios(t.FD, unix.TCSETS, &before)
	}
}

// prepare puts the person's terminal into raw mode and makes writing to stdout
// non-blocking.
func (f *Forwarder) prepare() error {
	if !f.opts.ReadOnly && len(f.terminals) == 0 {
		if err := f.rawMode(); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.stdout, &st); err != nil {
		return fmt.Errorf("forward pty: output: %w", os.NewSyscallError("fstat", err))
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		return nil // never blocks, and its offset must move
	}
	// O_NONBLOCK belongs to the open file, which a terminal or a pipe shares
	// with other processes: use an open file of our own where that is possible.
	if fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(f.stdout), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err == nil {
		f.undo = append(f.undo, func() { unix.Close(fd) })
		f.stdout = fd
		return nil
	}
	flags, err := unix.FcntlInt(uintptr(f.stdout), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("forward pty: output: %w", os.NewSyscallError("fcntl", err))
	}
	if flags&unix.O_NONBLOCK == 0 {
		if err := unix.SetNonblock(f.stdout, true); err != nil {
			return fmt.Errorf("forward pty: output: %w", os.NewSyscallError("fcntl", err))
		}
		fd := f.stdout
		f.undo = append(f.undo, func() { _ = unix.SetNonblock(fd, false) })
	}
	return nil
}

// rawMode hands every key to the machine and every byte of output to the
// terminal. Where stdin and stdout are different terminals, each gets only the
// half that concerns it.
func (f *Forwarder) rawMode() error {
	same := sameFile(f.stdin, f.stdout)
	if term.IsTerminal(f.stdin) {
		old, err := unix.IoctlGetTermios(f.stdin, unix.TCGETS)
		if err != nil {
			return fmt.Errorf("forward pty: input: %w", os.NewSyscallError("TCGETS", err))
		}
		if _, err := term.MakeRaw(f.stdin); err != nil {
			return fmt.Errorf("forward pty: raw mode of input: %w", err)
		}
		fd := f.stdin
		f.enter(fd, old)
		if !same {
			raw := *old
			if now, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
				raw = *now
			}
			raw.Oflag = old.Oflag
			_ = unix.IoctlSetTermios(fd, unix.TCSETS, &raw)
		}
	}
	if !same && term.IsTerminal(f.stdout) {
		old, err := unix.IoctlGetTermios(f.stdout, unix.TCGETS)
		if err != nil {
			return fmt.Errorf("forward pty: output: %w", os.NewSyscallError("TCGETS", err))
		}
		raw := *old
		raw.Oflag &^= unix.OPOST
		if err := unix.IoctlSetTermios(f.stdout, unix.TCSETS, &raw); err != nil {
			return fmt.Errorf("forward pty: raw mode of output: %w", os.NewSyscallError("TCSETS", err))
		}
		f.enter(f.stdout, old)
	}
	return nil
}

func (f *Forwarder) restore() {
	for i := len(f.terminals) - 1; i >= 0; i-- {
		f.terminals[i].restore()
	}
	f.terminals = nil
	for i := len(f.undo) - 1; i >= 0; i-- {
		f.undo[i]()
	}
	f.undo = nil
}

// copyWindowSize gives the PTY the size of the person's terminal. Where there is
// none, programs get the size that the environment names, or an ordinary one:
// some draw nothing, or divide by zero, on a terminal of no size.
func (f *Forwarder) copyWindowSize() {
	ws, err := unix.IoctlGetWinsize(f.stdout, unix.TIOCGWINSZ)
	if err != nil {
		ws = &unix.Winsize{Row: sizeFrom("LINES", 24), Col: sizeFrom("COLUMNS", 80)}
	}
	_ = unix.IoctlSetWinsize(f.master, unix.TIOCSWINSZ, ws)
}

// sizeFrom reads one side of a terminal's size from the environment.
func sizeFrom(variable string, otherwise uint16) uint16 {
	n, err := strconv.ParseUint(os.Getenv(variable), 10, 16)
	if err != nil || n == 0 {
		return otherwise
	}
	return uint16(n)
}

func sameFile(a, b int) bool {
	var x, y unix.Stat_t
	return unix.Fstat(a, &x) == nil && unix.Fstat(b, &y) == nil && x.Dev == y.Dev && x.Ino == y.Ino && x.Rdev == y.Rdev
}
