package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"machined/image"
	"machined/internal/btrfs"
	"machined/internal/pathlock"

	"golang.org/x/sys/unix"
)

// export writes an image to a file, as an archive or a disk image.
func (e *engine) export(ctx context.Context) error {
	if e.File == nil || e.Local == "" && e.Source == "" {
		return fmt.Errorf("%w: an export needs a name and a file", ErrInvalid)
	}
	img, err := e.exported(ctx)
	if err != nil {
		return err
	}
	tree := img.Type == image.TypeDirectory || img.Type == image.TypeSubvolume
	switch {
	case e.Kind == ExportOCI && (tree || img.Type == image.TypeMStack):
	case img.Type == image.TypeMStack:
		return e.wrongKind(img, "a stack of layers", ExportOCI)
	case tree && e.Kind == ExportRaw:
		return e.wrongKind(img, "a directory tree", ExportTar)
	case !tree && e.Kind != ExportRaw:
		return e.wrongKind(img, "a disk image", ExportRaw)
	}
	src, release, err := e.open(img)
	if err != nil {
		return err
	}
	defer release()

	what := e.Remote
	if what == "" {
		what = e.File.Name()
	}
	format := e.Format
	if format == "" {
		format = Uncompressed
		if e.Kind == ExportOCI {
			format = Gzip
		}
	}
	e.logf(Info, "Exporting '%s', saving to '%s' with compression '%s'.", img.Path, what, format)
	whole := wholeFile(e.File)
	// Of an older file nothing stays behind what is written. A new one is left as it is:
	// ext4 waits, when a file that was truncated is closed, until it is on its way to the disk.
	if st, err := e.File.Stat(); whole && err == nil && st.Size() > 0 {
		_ = e.File.Truncate(0)
	}
	if e.Kind == ExportOCI {
		if err := e.exportOCI(ctx, img, format); err != nil {
			return fmt.Errorf("export %q: %w", e.Local, err)
		}
		e.succeed()
		return nil
	}
	out, err := NewWriter(e.stream(ctx), format)
	if err != nil {
		return err
	}
	if tree {
		total := uint64(0)
		if img.Usage != image.Unknown {
			total = img.Usage
		}
		err = Tar(ctx, src, out, e.steps(int64(total), "Exported %d%%."))
	} else {
		err = e.exportRaw(ctx, src, out, whole && format == Uncompressed)
	}
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("export %q: %w", e.Local, err)
	}
	// The kernel writes the file in its own time, as after tar(1) or cp(1): the image
	// is still there, and waiting for the disk is most of what an export would take.
	e.succeed()
	return nil
}

// wrongKind says which export takes an image of this kind.
func (e *engine) wrongKind(img image.Image, what string, kind Kind) error {
	return &worded{fmt.Sprintf("Image '%s' is %s: %s exports it, %s does not.", img.Name, what, kind, e.Kind), ErrInvalid}
}

// exported finds what is exported: an image, or what lies at a path.
func (e *engine) exported(ctx context.Context) (image.Image, error) {
	if e.Source == "" {
		img, err := e.store.Get(ctx, e.Local)
		if errors.Is(err, image.ErrNoSuchImage) {
			err = &worded{fmt.Sprintf("Image %s not found.", e.Local), err}
		}
		return img, err
	}
	e.Local = filepath.Base(e.Source)
	img := image.Image{Name: e.Local, Path: e.Source, Type: image.TypeRaw, Usage: image.Unknown}
	st, err := os.Stat(e.Source)
	if err != nil {
		return img, err
	}
	if st.IsDir() {
		img.Type = image.TypeDirectory
		if f, err := os.Open(e.Source); err == nil {
			if btrfs.IsSubvolume(f) {
				img.Type = image.TypeSubvolume
			}
			_ = f.Close()
		}
	}
	return img, nil
}

// open opens an image to be read as it is now: under a lock that keeps others from
// changing it or, where a machine runs on it, as a snapshot, if the file system
// makes any. Without one a running machine's image is read while it changes, as by
// cp(1) or tar(1). release undoes all of that.
func (e *engine) open(img image.Image) (src *os.File, release func(), err error) {
	path := img.Path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if src, err = os.Open(path); err != nil {
		return nil, nil, err
	}
	locks := pathlock.Default
	if e.LockDir != "" {
		locks.Dir = e.LockDir
	}
	lock, err := locks.Image(path, false)
	switch {
	case err == nil:
		return src, func() { _ = src.Close(); lock.Close() }, nil
	case !errors.Is(err, pathlock.ErrBusy):
		_ = src.Close()
		return nil, nil, err
	}
	if snapshot, remove := snapshotOf(src, path, img.Type); snapshot != nil {
		_ = src.Close()
		e.logf(Notice, "Image '%s' is in use, exporting a snapshot of it.", e.Local)
		return snapshot, func() { _ = snapshot.Close(); remove() }, nil
	}
	e.logf(Notice, "Image '%s' is in use, what changes meanwhile is exported in part.", e.Local)
	return src, func() { _ = src.Close() }, nil
}

// snapshotOf makes a short-lived snapshot of a subvolume or a disk image beside
// it; nil where the file system cannot.
func snapshotOf(src *os.File, path string, kind image.Type) (snapshot *os.File, remove func()) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, nil
	}
	defer func() { _ = dir.Close() }()
	switch kind {
	case image.TypeSubvolume:
		name := image.TempName(filepath.Base(path))
		if btrfs.SnapshotTree(src, dir, name, true) != nil {
			return nil, nil
		}
		temp := filepath.Join(filepath.Dir(path), name)
		remove = func() { _ = image.RemoveTree(temp) }
		if snapshot, err = os.Open(temp); err == nil && image.HoldTemp(snapshot) == nil {
			return snapshot, remove
		}
		remove()
	case image.TypeRaw:
		fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, nil
		}
		snapshot = os.NewFile(uintptr(fd), path)
		if unix.IoctlFileClone(fd, int(src.Fd())) == nil {
			return snapshot, func() {}
		}
		_ = snapshot.Close()
	}
	return nil, nil
}

// wholeFile says whether what is written to an open file becomes all of it: not what
// a shell's >> appends, nor what follows something in it.
func wholeFile(f *os.File) bool {
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return false
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_APPEND != 0 {
		return false
	}
	at, err := f.Seek(0, io.SeekCurrent)
	return err == nil && at == 0
}

// exportRaw writes a disk image, with holes in a file that is sparse.
func (e *engine) exportRaw(ctx context.Context, src *os.File, out io.Writer, sparse bool) error {
	size, err := src.Seek(0, io.SeekEnd) // of a block device too
	if err == nil {
		_, err = src.Seek(0, io.SeekStart)
	}
	if err != nil {
		return err
	}
	w := out
	var holes *sparseWriter
	if sparse {
		holes = &sparseWriter{f: e.File}
		w = holes
	}
	in := &counter{r: src, tell: e.steps(size, "Exported %d%%.")}
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := in.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if holes != nil {
		return holes.finish()
	}
	return nil
}
