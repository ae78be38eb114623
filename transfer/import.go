package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"machined/image"
	"machined/internal/treecopy"

	"golang.org/x/sys/unix"
)

// importFile makes an image out of a file or a directory.
func (e *engine) importFile(ctx context.Context) error {
	if e.File == nil || e.Local == "" {
		return fmt.Errorf("%w: an import needs a file and a name", ErrInvalid)
	}
	what := e.Remote
	if what == "" {
		what = e.File.Name()
	}
	if err := e.checkFree(ctx); err != nil {
		return err
	}
	e.logf(Info, "Importing '%s', saving as '%s'.", what, e.Local)
	e.tellRoot()
	tree := e.Kind != ImportRaw
	b, err := e.begin(tree)
	if err != nil {
		return err
	}
	defer b.drop()
	switch e.Kind {
	case ImportFS:
		err = treecopy.Copy(ctx, e.File, b.f, treecopy.Options{SameMount: true, Owner: e.owner()})
	default:
		err = e.fill(ctx, e.source(ctx), b)
	}
	if err != nil {
		return fmt.Errorf("import %q: %w", what, err)
	}
	if e.Kind == ImportRaw {
		e.logf(Info, "Wrote %s.", bytesText(b.unpacked))
	}
	if err := e.flush(b); err != nil {
		return err
	}
	if err := e.makeWay(ctx); err != nil {
		return err
	}
	if err := e.finish(b, e.target(tree), e.ReadOnly); err != nil {
		return err
	}
	e.succeed()
	return nil
}

// source reads the transfer's file and tells how far it got.
func (e *engine) source(ctx context.Context) io.Reader {
	total := int64(0)
	if st, err := e.File.Stat(); err == nil && st.Mode().IsRegular() {
		total = st.Size()
		_ = unix.Fadvise(int(e.File.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	}
	return &counter{r: e.stream(ctx), tell: e.steps(total, "Imported %d%%.")}
}

// steps tells the progress of total bytes, every ten percent by a line, too.
func (e *engine) steps(total int64, line string) func(n int64) {
	told := -10
	return func(n int64) {
		if percent, fresh := e.progress(n, total); fresh && percent >= told+10 {
			told = percent
			e.logf(Info, line, percent)
		}
	}
}

// unpackStream unpacks a compressed archive into a tree being built.
func (e *engine) unpackStream(ctx context.Context, r io.Reader, b *building) error {
	in, _, err := NewReader(r)
	if err != nil {
		return streamError(err)
	}
	defer func() { _ = in.Close() }()
	count := &tally{r: in}
	tail := &tailReader{r: count}
	u := newUntar(b.f, tail, e.writer(b))
	if err := u.run(ctx, tail); err != nil {
		return err
	}
	b.unpacked = count.n
	if u.disarmed != "" {
		e.logf(Warning, "Extended attributes that an archive may not bring, as %q, are left out.", u.disarmed)
	}
	if u.ordinary {
		e.logf(Notice, "Files belong to the user who imports them, as only root can keep their owners.")
	}
	if u.devices > 0 {
		e.logf(Warning, "%d device nodes are left out, as only root can make them.", u.devices)
	}
	return e.liftTree(b.path)
}

// owner maps owners of files that are copied: without root they all become the user's.
func (e *engine) owner() func(uid, gid uint32) (uint32, uint32) {
	if os.Geteuid() == 0 {
		return nil
	}
	return func(uint32, uint32) (uint32, uint32) { return uint32(os.Geteuid()), uint32(os.Getegid()) }
}

// tally counts what is read through it.
type tally struct {
	r io.Reader
	n int64
}

func (t *tally) Read(b []byte) (int, error) {
	n, err := t.r.Read(b)
	t.n += int64(n)
	return n, err
}

// streamError tells why a stream cannot be decompressed at all.
func streamError(err error) error {
	var source *sourceError
	if errors.As(err, &source) {
		return source
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it holds nothing", ErrArchive)
	}
	return fmt.Errorf("%w: %w", ErrArchive, err)
}

// unpackRaw writes a compressed disk image, raw or qcow2, into a file being built.
func (e *engine) unpackRaw(ctx context.Context, r io.Reader, b *building) error {
	in, _, err := NewReader(r)
	if err != nil {
		return streamError(err)
	}
	defer func() { _ = in.Close() }()
	w := e.sink(b)
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := in.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return unwritten(err)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return archiveError("read %s", "disk image", err)
		}
	}
	if err := w.finish(); err != nil {
		return unwritten(err)
	}
	b.unpacked = w.written()
	if e.Direct != nil {
		return nil // a checksum file or a partition, as it is
	}
	if w.written() == 0 {
		return fmt.Errorf("%w: it holds nothing", ErrArchive)
	}
	if e.KeepQcow2 || !isQcow2(b.f) {
		return nil
	}
	return e.convert(ctx, b)
}

// unwritten is an error of writing an image, whose name is a temporary one.
func unwritten(err error) error { return fmt.Errorf("write image: %w", withoutPath(err)) }

// convert replaces a qcow2 file being built by the disk that is in it.
func (e *engine) convert(ctx context.Context, b *building) error {
	e.logf(Info, "Unpacking QCOW2 file.")
	path := filepath.Join(e.ImageRoot, image.TempName(e.Local))
	release, err := image.GuardTemp(e.ImageRoot)
	if err != nil {
		return err
	}
	raw, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		release()
		return err
	}
	disk := &building{path: path, f: raw}
	err = image.HoldTemp(raw)
	release()
	if err != nil {
		disk.drop()
		return err
	}
	st, err := b.f.Stat()
	if err == nil {
		err = unpackQcow2(ctx, b.f, st.Size(), raw)
	}
	if err != nil {
		disk.drop()
		return err
	}
	disk.unpacked = b.unpacked
	b.drop()
	*b = *disk
	return nil
}
