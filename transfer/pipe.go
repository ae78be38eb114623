package transfer

import (
	"context"
	"io"
	"os"
)

// pipeChunk is how much is read from a pipe, or written to one, at once, in bytes.
const pipeChunk = 256 << 10

// interruptible reads and writes a pipe, whose other end may do nothing for ever, and
// comes back when ctx ends: what hangs then is left to the end of the process. The
// descriptor is somebody else's, too, so that it cannot be made non-blocking.
type interruptible struct {
	ctx  context.Context //nolint:containedctx // lives as long as one transfer
	f    *os.File
	buf  []byte // of the read or write under way
	rest []byte // read and not yet taken
	err  error
}

// stream is the transfer's file to be read and written in order.
func (e *engine) stream(ctx context.Context) io.ReadWriter {
	if st, err := e.File.Stat(); err == nil && st.Mode().IsRegular() {
		return e.File
	}
	return &interruptible{ctx: ctx, f: e.File, buf: make([]byte, pipeChunk)}
}

// wait runs do, which may hang, until it returns or the context ends.
func (p *interruptible) wait(do func() (int, error)) (int, error) {
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := do()
		done <- result{n, err}
	}()
	select {
	case <-p.ctx.Done():
		return 0, p.ctx.Err()
	case r := <-done:
		return r.n, r.err
	}
}

func (p *interruptible) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		if p.err != nil {
			return 0, p.err
		}
		var n int
		n, p.err = p.wait(func() (int, error) { return p.f.Read(p.buf) })
		p.rest = p.buf[:n]
		if n == 0 {
			return 0, p.err
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

func (p *interruptible) Write(b []byte) (int, error) {
	total := 0
	for len(b) > 0 && p.err == nil {
		chunk := p.buf[:copy(p.buf, b)] // the caller's is its own again when it is told of the end
		var n int
		n, p.err = p.wait(func() (int, error) { return p.f.Write(chunk) })
		total += n
		b = b[len(chunk):]
	}
	return total, p.err
}
