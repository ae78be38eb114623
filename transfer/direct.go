package transfer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"time"

	"machined/image"
	"machined/internal/treecopy"

	"golang.org/x/sys/unix"
)

// Direct makes an import or a pull write to a path or an open file, without making
// an image of it: what the programs systemd-pull and systemd-import do with
// --direct, which systemd-sysupdate(8) calls. Nothing is undone after a failure.
type Direct struct {
	// Path is absolute. An archive or a directory is unpacked into a directory
	// there, which may exist as long as no entry is in the way.
	Path string
	// Out is written to in the place of Path.
	Out *os.File `json:"-"`
	// Offset is where in the file to start, in bytes. -1 means at its start, and
	// then the file ends where the data does.
	Offset int64
	// SizeMax is how many bytes may be written; -1 means any number.
	SizeMax int64
}

// direct does a transfer that makes no image.
func (e *engine) direct(ctx context.Context) error {
	if e.Direct.Path != "" && !filepath.IsAbs(e.Direct.Path) {
		return fmt.Errorf("%w: path %q is not absolute", ErrInvalid, e.Direct.Path)
	}
	tree := e.Kind == ImportTar || e.Kind == ImportFS || e.Kind == PullTar
	if tree && (e.Direct.Path == "" || e.Direct.Offset >= 0) {
		return fmt.Errorf("%w: a tree needs a path, and has no offset", ErrInvalid)
	}
	var err error
	switch e.Kind {
	case PullTar, PullRaw:
		err = e.pullDirect(ctx, tree)
	case ImportTar, ImportRaw, ImportFS:
		if e.File == nil {
			return fmt.Errorf("%w: an import needs a file", ErrInvalid)
		}
		e.logf(Info, "Importing '%s', saving as '%s'.", e.Remote, e.Direct.Path)
		var b *building
		if b, err = e.openDirect(tree); err == nil {
			if e.Kind == ImportFS {
				err = treecopy.Copy(ctx, e.File, b.f, treecopy.Options{SameMount: true})
			} else {
				err = e.fill(ctx, e.source(ctx), b)
			}
			err = e.closeDirect(b, err)
		}
	default:
		err = fmt.Errorf("%w: %s makes images only", ErrInvalid, e.Kind)
	}
	if err != nil {
		return err
	}
	e.succeed()
	return nil
}

// pullDirect downloads to a path or an open file.
func (e *engine) pullDirect(ctx context.Context, tree bool) error {
	if err := CheckURL(e.Remote); err != nil {
		return err
	}
	if e.Verify == "" {
		e.Verify = VerifySignature
	}
	if e.Direct.Path != "" {
		e.logf(Info, "Pulling '%s', saving as '%s'.", e.Remote, e.Direct.Path)
	} else {
		e.logf(Info, "Pulling '%s'.", e.Remote)
	}
	name, err := lastPart(e.Remote)
	if err != nil {
		return err
	}
	c := newClient(e.StallTimeout)
	if isChecksumFile(name) {
		return e.pullChecksums(ctx, c, name)
	}
	sums, err := e.fetchChecksums(ctx, c, name)
	if err != nil {
		return err
	}
	d, err := c.get(ctx, e.Remote, nil)
	if err != nil {
		return err
	}
	defer d.closeBody()
	b, err := e.openDirect(tree)
	if err != nil {
		return err
	}
	err = e.receive(ctx, d, b, name, sums)
	if err == nil && !d.mtime.IsZero() && !tree && e.Direct.Offset < 0 && e.Direct.Path != "" {
		_ = os.Chtimes(e.Direct.Path, time.Now(), d.mtime)
	}
	return e.closeDirect(b, err)
}

// pullChecksums downloads a checksum file itself, which nothing but its own
// signature can verify.
func (e *engine) pullChecksums(ctx context.Context, c *client, name string) error {
	data, err := e.fetchSmall(ctx, c, e.Remote)
	if err != nil {
		return err
	}
	switch {
	case e.Checksum != nil:
		if err := e.literal(name).check(name, sha256.Sum256(data)); err != nil {
			return err
		}
	case e.Verify == VerifySignature:
		if err := e.fetchSignature(ctx, c, name, data); err != nil {
			return err
		}
	}
	b, err := e.openDirect(false)
	if err != nil {
		return err
	}
	_, err = e.sink(b).Write(data)
	return e.closeDirect(b, err)
}

// fill unpacks a stream into what is being built, a tree or a disk image.
func (e *engine) fill(ctx context.Context, r io.Reader, b *building) error {
	if b.tree {
		return e.unpackStream(ctx, r, b)
	}
	return e.unpackRaw(ctx, r, b)
}

// openDirect opens what a direct transfer writes to.
func (e *engine) openDirect(tree bool) (*building, error) {
	if e.Direct.Out != nil {
		return &building{f: e.Direct.Out}, nil
	}
	path := e.Direct.Path
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if !tree {
		flags := os.O_RDWR | os.O_CREATE | unix.O_NOCTTY
		if e.Direct.Offset < 0 {
			flags |= os.O_TRUNC
		}
		f, err := os.OpenFile(path, flags, 0o664)
		if err != nil {
			return nil, err
		}
		return &building{path: path, f: f}, nil
	}
	if e.Force {
		if err := image.RemoveTree(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	parent, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer func() { _ = parent.Close() }()
	if err := e.makeTree(parent, filepath.Base(path)); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &building{path: path, f: f, tree: true}, nil
}

// closeDirect writes a direct transfer to the disk, marks it read-only if that is
// asked for, and closes it. failed is what went wrong before.
func (e *engine) closeDirect(b *building, failed error) error {
	if b.f == e.Direct.Out {
		_ = b.sync.Wait()
		return failed
	}
	defer func() { _ = b.f.Close() }()
	if failed != nil {
		_ = b.sync.Wait()
		return fmt.Errorf("write %q: %w", e.Direct.Path, failed)
	}
	if err := e.flush(b); err != nil {
		return err
	}
	if e.ReadOnly {
		return markReadOnly(b)
	}
	return nil
}

// sink is the writer for the content of a disk image: with holes where the file
// is new, and byte by byte where something is there already.
func (e *engine) sink(b *building) sinkWriter {
	if e.Direct == nil {
		return &sparseWriter{f: b.f}
	}
	w := &boundedWriter{f: b.f, stream: e.Direct.Out != nil, left: math.MaxInt64}
	if e.Direct.SizeMax >= 0 {
		w.left = e.Direct.SizeMax
	}
	if e.Direct.Offset > 0 {
		w.off = e.Direct.Offset
	}
	return w
}

// sinkWriter is a writer that knows how much it was given.
type sinkWriter interface {
	io.Writer
	finish() error
	written() int64
}

// boundedWriter writes a part of a file, or a stream.
type boundedWriter struct {
	f            *os.File
	stream       bool
	off, n, left int64
}

func (w *boundedWriter) Write(b []byte) (int, error) {
	if int64(len(b)) > w.left {
		return 0, fmt.Errorf("larger than its maximum size of %d bytes: %w", w.n+w.left, unix.EFBIG)
	}
	var n int
	var err error
	if w.stream {
		n, err = w.f.Write(b)
	} else {
		n, err = w.f.WriteAt(b, w.off)
	}
	w.off, w.n, w.left = w.off+int64(n), w.n+int64(n), w.left-int64(n)
	return n, err
}

func (w *boundedWriter) finish() error  { return nil }
func (w *boundedWriter) written() int64 { return w.n }
