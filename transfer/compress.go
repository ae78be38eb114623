package transfer

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"machined/internal/inflate"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// Format is a compression.
type Format string

// The formats of org.freedesktop.import1(5).
const (
	Uncompressed Format = "uncompressed"
	XZ           Format = "xz"
	Gzip         Format = "gzip"
	Bzip2        Format = "bzip2"
	Zstd         Format = "zstd"
)

// ParseFormat reads the name of a compression; an empty one means none.
func ParseFormat(s string) (Format, error) {
	switch f := Format(s); f {
	case "":
		return Uncompressed, nil
	case Uncompressed, XZ, Gzip, Bzip2, Zstd:
		return f, nil
	}
	return "", fmt.Errorf("%w: unknown compression format %q", ErrInvalid, s)
}

var magics = []struct {
	format Format
	magic  string
}{
	{XZ, "\xfd7zXZ\x00"}, {Gzip, "\x1f\x8b"}, {Bzip2, "BZh"}, {Zstd, "\x28\xb5\x2f\xfd"},
}

// detect tells the compression from the first bytes of a stream.
func detect(head []byte) Format {
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.format
		}
	}
	return Uncompressed
}

// maxWindow bounds the memory that a zstd stream may ask for, in bytes.
const maxWindow = 128 << 20

// NewReader undoes whatever compression r has, told by its content. Reading,
// decompressing and what the caller does run at the same time. The caller closes
// the reader; r stays the caller's.
func NewReader(r io.Reader) (io.ReadCloser, Format, error) {
	in := bufio.NewReaderSize(r, 1<<18)
	head, err := in.Peek(6)
	if err != nil && (len(head) == 0 || !errors.Is(err, io.EOF)) {
		return nil, "", err
	}
	err = nil
	format := detect(head)
	var out io.Reader
	abort, release := func() error { return nil }, func() {}
	switch format {
	case Gzip:
		out, err = inflate.NewReader(in)
	case Zstd:
		var d *zstd.Decoder
		d, err = zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(0))
		if err == nil {
			out, release = zstdReader{d}, d.Close // a decoder that is closed while it is read hangs
		}
	case Bzip2:
		out, abort, err = pipeThrough(in, func() (io.Reader, error) { return bzip2.NewReader(in), nil }, []string{"lbzip2", "-dc"}, []string{"bzip2", "-dc"})
	case XZ:
		out, abort, err = pipeThrough(in, func() (io.Reader, error) { return xz.NewReader(in) }, xzDecoder())
	default:
		out = in
	}
	if err != nil {
		return nil, "", fmt.Errorf("read %s stream: %w", format, err)
	}
	return newAhead(out, abort, release), format, nil
}

// xzDecoder is the command line that decodes xz. Threads each keep whole blocks
// in memory, so an xz that has threads for decoding (5.4) is told to use no more
// of them than fit into 96 MiB; the hard limit is for streams with one huge window.
func xzDecoder() []string {
	const threads = "--memlimit-mt-decompress=96MiB"
	argv := []string{"xz", "-T0", "-dc", "--memlimit-decompress=512MiB"}
	if exec.Command("xz", threads, "--version").Run() == nil {
		argv = append(argv, threads)
	}
	return argv
}

// pipeThrough decodes in by the first of the programs that is installed, which
// are faster than any library of ours, else by the library.
func pipeThrough(in io.Reader, library func() (io.Reader, error), programs ...[]string) (io.Reader, func() error, error) {
	for _, argv := range programs {
		path, err := exec.LookPath(argv[0])
		if err != nil {
			continue
		}
		cmd := exec.Command(path, argv[1:]...)
		errs := &limitedText{}
		source := &source{r: in}
		cmd.Stderr = errs
		feed, err := cmd.StdinPipe()
		if err != nil {
			return nil, nil, err
		}
		out, end, err := widePipe()
		if err != nil {
			return nil, nil, err
		}
		cmd.Stdout = end
		err = cmd.Start()
		_ = end.Close()
		if err != nil {
			_ = out.Close()
			return nil, nil, err
		}
		// Not by cmd itself, whose Wait would wait for a source that is silent.
		go func() {
			_, _ = io.Copy(feed, source)
			_ = feed.Close()
		}()
		child := &childReader{out: out, cmd: cmd, source: source, errs: errs}
		return child, child.Close, nil
	}
	out, err := library()
	return out, func() error { return nil }, err
}

// A program writes its output in small pieces, xz 8 KiB at a time. Who waits for each of them
// wakes up and goes to sleep again for each, and so does the program: the pipe is made large, in
// bytes, and left to fill a little after there was next to nothing in it.
const (
	pipeSize = 1 << 20
	pipeRest = 2 * time.Millisecond
)

// widePipe returns both ends of a pipe that Go's poller knows nothing of, as that
// would wake up for each piece, too. It is large unless the user has no more to spare.
func widePipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// childReader reads the output of a program; its failure shows at the end.
type childReader struct {
	scarce bool // there was little to read the last time
	out    io.ReadCloser
	cmd    *exec.Cmd
	source *source
	errs   *limitedText
	once   sync.Once
	err    error
}

// source remembers why reading it has failed: the program only sees an early end.
type source struct {
	r   io.Reader
	mu  sync.Mutex // guards err
	err error
}

func (s *source) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
	}
	return n, err
}

func (c *childReader) Read(b []byte) (int, error) {
	if c.scarce {
		time.Sleep(pipeRest)
	}
	n, err := c.out.Read(b)
	c.scarce = n < min(len(b), pipeSize/4)
	if errors.Is(err, io.EOF) {
		if failed := c.wait(); failed != nil {
			return n, failed
		}
	}
	return n, err
}

func (c *childReader) wait() error {
	c.once.Do(func() {
		c.err = decoderFault(filepath.Base(c.cmd.Path), c.cmd.Wait(), c.errs.line())
		if err := c.source.failed(); err != nil {
			c.err = err
		}
	})
	return c.err
}

// decoderFault says what a program for decompression means by its end and by what
// it has written: on the first fault only, in words that are not about the program.
func decoderFault(program string, ended error, said string) error {
	says := func(words ...string) bool {
		lower := strings.ToLower(said)
		return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(lower, word) })
	}
	format := strings.TrimPrefix(program, "l") // lbzip2
	var exit *exec.ExitError
	switch {
	case says("garbage"): // only a warning to some
		return fmt.Errorf("data follow the end of its %s stream", format)
	case ended == nil:
		return nil
	case !errors.As(ended, &exit) || !exit.Exited():
		return fmt.Errorf("%s: %w", program, ended)
	case says("unexpected end", "ends unexpectedly"):
		return io.ErrUnexpectedEOF
	case says("memory usage limit"):
		return fmt.Errorf("its %s stream needs too much memory", format)
	case says("corrupt", "integrity", "not recognized", "not a bzip2 file", "compressed data error"):
		return fmt.Errorf("its %s stream is corrupt", format)
	}
	return fmt.Errorf("%s: %w: %s", program, ended, said)
}

// zstdReader gives the errors of a decoder words that are about the stream.
type zstdReader struct{ d *zstd.Decoder }

func (z zstdReader) Read(b []byte) (int, error) {
	n, err := z.d.Read(b)
	var from *sourceError
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &from):
	case errors.Is(err, zstd.ErrMagicMismatch):
		err = errors.New("data follow the end of its zstd stream")
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		err = errors.New("its zstd stream needs too much memory")
	default:
		err = fmt.Errorf("its zstd stream is corrupt: %w", err)
	}
	return n, err
}

func (c *childReader) Close() error {
	_ = c.cmd.Process.Kill() // a reader that waits comes back by that
	_ = c.out.Close()
	_ = c.wait()
	return nil
}

// limitedText keeps the first kilobytes of what a program says.
type limitedText struct {
	mu  sync.Mutex
	buf []byte
}

func (t *limitedText) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := 2048 - len(t.buf); room > 0 {
		t.buf = append(t.buf, b[:min(room, len(b))]...)
	}
	return len(b), nil
}

func (t *limitedText) line() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ReplaceAll(strings.TrimSpace(string(t.buf)), "\n", "; ")
}

// ahead reads from another goroutine, a few buffers ahead.
type ahead struct {
	full, free chan []byte
	current    []byte
	rest       []byte
	err        error
	failed     error // set before full is closed
	stop       chan struct{}
	finished   chan struct{}
	abort      func() error // has a read that is under way return
}

// newAhead reads from r; release is called when the last read has returned.
func newAhead(r io.Reader, abort func() error, release func()) *ahead {
	a := &ahead{full: make(chan []byte, 8), free: make(chan []byte, 8), stop: make(chan struct{}), finished: make(chan struct{}), abort: abort}
	for range cap(a.free) {
		a.free <- make([]byte, 512<<10)
	}
	go func() {
		defer close(a.finished)
		defer release()
		defer close(a.full)
		for {
			var buf []byte
			select {
			case buf = <-a.free:
			case <-a.stop:
				return
			}
			buf = buf[:cap(buf)]
			n, err := 0, error(nil)
			for n < len(buf) && err == nil {
				var m int
				m, err = r.Read(buf[n:])
				n += m
			}
			if n > 0 {
				select {
				case a.full <- buf[:n]:
				case <-a.stop:
					return
				}
			}
			if err != nil {
				a.failed = err
				return
			}
		}
	}()
	return a
}

func (a *ahead) Read(b []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		if a.current != nil {
			a.free <- a.current
			a.current = nil
		}
		buf, ok := <-a.full
		if !ok {
			a.err = a.failed
			if a.err == nil {
				a.err = io.EOF
			}
			continue
		}
		a.current, a.rest = buf, buf
	}
	n := copy(b, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// lastRead is how long Close waits for a read that is under way: one from a pipe into
// which nobody writes may take for ever, and nobody wants what it brings.
const lastRead = time.Second

func (a *ahead) Close() error {
	close(a.stop)
	err := a.abort()
	select {
	case <-a.finished:
	case <-time.After(lastRead):
	}
	return err
}

// NewWriter compresses what is written to it into w. Closing it ends the stream
// and leaves w open.
func NewWriter(w io.Writer, format Format) (io.WriteCloser, error) {
	switch format {
	case Gzip:
		return newParallelGzip(w, runtime.NumCPU()), nil
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(runtime.NumCPU()))
	case XZ:
		return writeThrough(w, func() (io.WriteCloser, error) { return xz.NewWriter(w) }, []string{"xz", "-T0", "-c"})
	case Bzip2:
		return writeThrough(w, func() (io.WriteCloser, error) {
			return nil, fmt.Errorf("compress with bzip2: %w: the program bzip2 is not installed", ErrNotSupported)
		}, []string{"lbzip2", "-c"}, []string{"bzip2", "-c"})
	default:
		return nopCloser{w}, nil
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func writeThrough(w io.Writer, library func() (io.WriteCloser, error), programs ...[]string) (io.WriteCloser, error) {
	for _, argv := range programs {
		path, err := exec.LookPath(argv[0])
		if err != nil {
			continue
		}
		cmd := exec.Command(path, argv[1:]...)
		errs := &limitedText{}
		cmd.Stdout, cmd.Stderr = w, errs
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		return &childWriter{WriteCloser: in, cmd: cmd, errs: errs}, nil
	}
	return library()
}

type childWriter struct {
	io.WriteCloser
	cmd  *exec.Cmd
	errs *limitedText
}

func (c *childWriter) Close() error {
	closeErr := c.WriteCloser.Close()
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("compress: %s: %w", c.errs.line(), err)
	}
	return closeErr
}

// parallelGzip compresses blocks at the same time, each a member of the stream
// of its own (RFC 1952, 2.2).
type parallelGzip struct {
	buf   []byte
	queue chan chan []byte
	limit chan struct{}
	done  chan error
}

const gzipBlock = 1 << 20

func newParallelGzip(w io.Writer, workers int) *parallelGzip {
	p := &parallelGzip{buf: make([]byte, 0, gzipBlock), queue: make(chan chan []byte, workers), limit: make(chan struct{}, workers), done: make(chan error, 1)}
	go func() {
		var failed error
		for result := range p.queue {
			data := <-result
			if failed == nil {
				_, failed = w.Write(data)
			}
		}
		p.done <- failed
	}()
	return p
}

func (p *parallelGzip) Write(b []byte) (int, error) {
	total := len(b)
	for len(b) > 0 {
		n := min(len(b), gzipBlock-len(p.buf))
		p.buf, b = append(p.buf, b[:n]...), b[n:]
		if len(p.buf) == gzipBlock {
			if err := p.flush(); err != nil {
				return 0, err
			}
		}
	}
	return total, nil
}

func (p *parallelGzip) flush() error {
	select {
	case err := <-p.done: // only an early end
		p.done <- err
		return err
	default:
	}
	block := p.buf
	p.buf = make([]byte, 0, gzipBlock)
	result := make(chan []byte, 1)
	p.limit <- struct{}{}
	p.queue <- result
	go func() {
		defer func() { <-p.limit }()
		var out bytes.Buffer
		z, _ := gzip.NewWriterLevel(&out, gzip.DefaultCompression)
		_, _ = z.Write(block) // a bytes.Buffer cannot fail
		_ = z.Close()
		result <- out.Bytes()
	}()
	return nil
}

func (p *parallelGzip) Close() error {
	if err := p.flush(); err != nil {
		return err
	}
	close(p.queue)
	return <-p.done
}
