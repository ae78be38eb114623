package dbus

import (
	"errors"
	"io"
	"math"

	"golang.org/x/sys/unix"
)

// quickSerials is where the serial numbers of quick replies begin. A reply's
// own number means nothing to anybody, but it must not be that of a message of
// godbus, which counts from 1.
const quickSerials = 1 << 31

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
	_, err := w.sock.Write(w.out)
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
	n, oobn, flags, _, err := w.sock.ReadMsgUnix(b, w.oob)
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
