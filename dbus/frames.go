package dbus

import (
	"errors"
	"io"
	"math"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// quickSerials is where the serial numbers of quick replies begin. A reply's
// own number means nothing to anybody, but it must not be that of a message of
// godbus, which counts from 1.
const quickSerials = 1 << 31

// waitsBetween is how many waits in the kernel the reader makes before it lets
// the scheduler see it. The run-time takes a goroutine that it has not seen for
// 10 ms for one that runs away, and then looks after it every 20 µs.
const waitsBetween = 64

// maxOut is how much of w.out is kept for the next replies.
const maxOut = 256 << 10

// Read hands the stream to godbus, message by message once the authentication
// is over. Calls that can be answered quickly are, and godbus never sees them.
func (w *wire) Read(b []byte) (int, error) {
	for {
		if w.begun.Load() && w.pass == 0 {
			if err := w.next(); err != nil {
				return 0, err
			}
		}
		if len(w.rest) == 0 {
			if err := w.fill(); err != nil {
				return 0, err
			}
		}
		if !w.begun.Load() {
			n := copy(b, w.rest)
			w.rest = w.rest[n:]
			return n, nil
		}
		if w.pass == 0 {
			continue // the authentication ended meanwhile
		}
		n := copy(b, w.rest[:min(len(w.rest), w.pass)])
		w.rest, w.pass = w.rest[n:], w.pass-n
		return n, nil
	}
}

// next answers quick calls until a message comes that godbus has to see, and
// sets pass to its length.
func (w *wire) next() error {
	for {
		for len(w.rest) < 16 {
			if err := w.more(); err != nil {
				return err
			}
		}
		size := frameLength(w.rest)
		if size == 0 { // no message: godbus meets the same and reports it
			w.pass = math.MaxInt
			return w.flush()
		}
		if size > maxQuick || w.rest[1] != 1 {
			w.pass = size
			return w.flush()
		}
		for len(w.rest) < size {
			if err := w.more(); err != nil {
				return err
			}
		}
		if !w.quick(w.rest[:size]) {
			w.pass = size
			return w.flush()
		}
		w.rest = w.rest[size:]
	}
}

// quick answers one call, if it is of that kind; flush sends the reply.
func (w *wire) quick(frame []byte) (answered bool) {
	w.serial = (w.serial + 1) | quickSerials
	if len(w.out) == 0 {
		w.out, answered = w.tree.answerQuick(frame, w.out, w.serial)
		return answered
	}
	// Parts of a message are aligned from its start, so one that follows
	// another is made by itself.
	if w.one, answered = w.tree.answerQuick(frame, w.one[:0], w.serial); answered {
		w.out = append(w.out, w.one...)
	}
	if cap(w.one) > maxOut {
		w.one = nil
	}
	return answered
}

// flush sends the replies that are ready.
func (w *wire) flush() error {
	if len(w.out) == 0 {
		return nil
	}
	err := w.send(w.out)
	if w.out = w.out[:0]; cap(w.out) > maxOut {
		w.out = nil
	}
	return err
}

// more adds to rest, after the replies to what was in it are on their way.
func (w *wire) more() error {
	if err := w.flush(); err != nil {
		return err
	}
	kept := copy(w.in, w.rest)
	n, err := w.receive(w.in[kept:])
	if err != nil {
		return err
	}
	w.rest = w.in[:kept+n]
	return nil
}

// fill replaces an empty rest.
func (w *wire) fill() error {
	n, err := w.receive(w.in)
	if err != nil {
		return err
	}
	w.rest = w.in[:n]
	return nil
}

// receive waits for bytes and takes in the descriptors that come with them.
func (w *wire) receive(b []byte) (int, error) {
	var n, oobn, flags int
	var err error
	file := w.file.Load()
	for file == nil {
		w.swap.RLock()
		if file = w.file.Load(); file == nil {
			n, oobn, flags, _, err = w.sock.ReadMsgUnix(b, w.oob)
		}
		w.swap.RUnlock()
		// By this serve has a waiting reader let go of the socket.
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	if file != nil {
		if w.waits++; w.waits%waitsBetween == 0 {
			runtime.Gosched()
		}
		n, oobn, flags, err = receiveBlocking(file, b, w.oob)
	}
	if oobn > 0 {
		w.takeFDs(w.oob[:oobn])
	}
	switch {
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	case flags&unix.MSG_CTRUNC != 0:
		return 0, errors.New("read from bus: control data truncated")
	}
	return n, nil
}

func receiveBlocking(file *os.File, b, oob []byte) (n, oobn, flags int, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, 0, 0, err
	}
	rerr := raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, flags, _, err = unix.Recvmsg(int(fd), b, oob, unix.MSG_CMSG_CLOEXEC)
			if !errors.Is(err, unix.EINTR) {
				return true
			}
		}
	})
	if rerr != nil {
		err = rerr
	}
	return n, oobn, flags, err
}

// serve makes the socket one to wait in, in the kernel and with a thread: that
// costs a server less than the run-time's poller, which on each message wakes a
// thread that looks for more to do. The socket leaves the poller for good, so
// that it wakes nobody else. Close ends a wait.
func (w *wire) serve() error {
	// Nobody may be in a call on the socket when it becomes one to wait in: a
	// reader would wait with it until the next message comes.
	if err := w.sock.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return err
	}
	w.swap.Lock()
	defer w.swap.Unlock()
	raw, err := w.sock.SyscallConn()
	if err != nil {
		return err
	}
	var file *os.File
	var ferr error
	err = raw.Control(func(fd uintptr) {
		dup, derr := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3)
		if derr != nil {
			ferr = derr
			return
		}
		if ferr = unix.SetNonblock(dup, false); ferr != nil {
			_ = unix.Close(dup)
			return
		}
		file = os.NewFile(uintptr(dup), "bus")
	})
	if err = errors.Join(err, ferr); err != nil {
		_ = w.sock.SetReadDeadline(time.Time{})
		return err
	}
	w.file.Store(file)
	return w.sock.Close()
}

// send writes all of b.
func (w *wire) send(b []byte) error {
	file := w.file.Load()
	if file == nil {
		w.swap.RLock()
		defer w.swap.RUnlock()
		if file = w.file.Load(); file == nil {
			_, err := w.sock.Write(b)
			return err
		}
	}
	_, err := file.Write(b)
	return err
}

// sendFDs writes all of b, and fds with its first byte.
func (w *wire) sendFDs(b []byte, fds []int) error {
	rights := unix.UnixRights(fds...)
	file := w.file.Load()
	if file == nil {
		w.swap.RLock()
		if file = w.file.Load(); file == nil {
			n, _, err := w.sock.WriteMsgUnix(b, rights, nil)
			w.swap.RUnlock()
			if err != nil {
				return err
			}
			return w.send(b[n:])
		}
		w.swap.RUnlock()
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var serr error
	err = raw.Write(func(fd uintptr) bool {
		for {
			if n, serr = unix.SendmsgN(int(fd), b, rights, nil, unix.MSG_NOSIGNAL); !errors.Is(serr, unix.EINTR) {
				return true
			}
		}
	})
	if err = errors.Join(err, serr); err != nil {
		return err
	}
	return w.send(b[n:])
}

// Close ends the stream, also for a reader that waits in the kernel.
func (w *wire) Close() error {
	file := w.file.Load()
	if file == nil {
		return w.sock.Close()
	}
	if raw, err := file.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
	return file.Close()
}
