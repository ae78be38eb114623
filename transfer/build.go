package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"machined/image"
	"machined/internal/btrfs"
	"machined/internal/durable"

	"golang.org/x/sys/unix"
)

// building is something on its way to becoming an image: a temporary directory
// or file in the image root.
type building struct {
	path string
	name string
	f    *os.File
	tree bool
	sync *durable.Writeback // nil: nothing is written before the end
	// unpacked is how many bytes it was made of: of the archive or the disk image.
	unpacked int64
}

// begin makes a temporary directory or file that a crash leaves to be cleaned up.
func (e *engine) begin(tree bool) (*building, error) {
	b, err := e.makeTemp(tree)
	var path *os.PathError
	if errors.As(err, &path) { // its name says nothing to anybody
		err = &os.PathError{Op: "make image in", Path: e.ImageRoot, Err: path.Err}
	}
	return b, err
}

func (e *engine) makeTemp(tree bool) (*building, error) {
	if err := os.MkdirAll(e.ImageRoot, 0o700); err != nil {
		return nil, err
	}
	if err := image.CleanTemporary(e.ImageRoot); err != nil {
		e.logf(Warning, "Failed to remove what an earlier transfer left: %v", err)
	}
	b := &building{name: image.TempName(e.Local), tree: tree}
	b.path = filepath.Join(e.ImageRoot, b.name)
	release, err := image.GuardTemp(e.ImageRoot)
	if err != nil {
		return nil, err
	}
	defer release()
	if tree {
		root, err := os.Open(e.ImageRoot)
		if err != nil {
			return nil, err
		}
		defer func() { _ = root.Close() }()
		if err := e.makeTree(root, b.name); err != nil {
			return nil, err
		}
		if b.f, err = os.Open(b.path); err != nil {
			b.drop()
			return nil, err
		}
	} else {
		f, err := os.OpenFile(b.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return nil, err
		}
		b.f = f
	}
	if err := image.HoldTemp(b.f); err != nil {
		b.drop()
		return nil, err
	}
	return b, nil
}

// drop removes what has not been given its name.
func (b *building) drop() {
	_ = b.sync.Wait()
	if b.path != "" {
		_ = image.RemoveTree(b.path)
	}
	if b.f != nil {
		_ = b.f.Close()
	}
}

// flush writes what was built to the disk.
func (e *engine) flush(b *building) error {
	early := b.sync.Wait()
	if e.NoSync {
		return nil
	}
	if !b.tree {
		return b.f.Sync()
	}
	return errors.Join(early, durable.Tree(b.f))
}

// writer returns what Untar tells of the files that it has written; nil when
// the disk is left to the kernel.
func (e *engine) writer(b *building) func(bytes int64) {
	if e.NoSync {
		return nil
	}
	if b.sync == nil {
		b.sync = durable.NewWriteback(b.f)
	}
	return b.sync.Add
}

// finish gives a complete image, which flush has written, its name at path and
// its read-only mark.
func (e *engine) finish(b *building, path string, readOnly bool) error {
	// An immutable directory cannot be renamed, so its mark comes last.
	last := b.tree && !btrfs.IsSubvolume(b.f)
	if readOnly && !last {
		if err := markReadOnly(b); err != nil {
			return err
		}
	}
	err := unix.Renameat2(unix.AT_FDCWD, b.path, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if err != nil {
		if errors.Is(err, unix.EEXIST) {
			if path == e.target(b.tree) {
				return e.exists()
			}
			return fmt.Errorf("%w: %q", image.ErrExists, path)
		}
		return &os.LinkError{Op: "rename", Old: b.path, New: path, Err: err}
	}
	b.path = ""
	if readOnly && last {
		if err := markReadOnly(b); err != nil {
			return err
		}
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return dir.Sync()
}

// makeTree makes an empty directory, a subvolume where that is possible and wanted.
func (e *engine) makeTree(dir *os.File, name string) error {
	if !e.PlainDirectory {
		return image.MakeTree(dir, name)
	}
	if err := unix.Mkdirat(int(dir.Fd()), name, 0o755); err != nil {
		return &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return nil
}

// markReadOnly gives an image the mark of its type. A file system without
// immutable files leaves a directory as it is.
func markReadOnly(b *building) error {
	switch {
	case !b.tree:
		return b.f.Chmod(0o444)
	case btrfs.IsSubvolume(b.f):
		return btrfs.SetReadOnly(b.f, true)
	}
	if flags, err := unix.IoctlGetInt(int(b.f.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
		_ = unix.IoctlSetPointerInt(int(b.f.Fd()), unix.FS_IOC_SETFLAGS, flags|0x10) // FS_IMMUTABLE_FL
	}
	return nil
}

// target is where the image goes that the transfer makes.
func (e *engine) target(tree bool) string {
	if tree {
		return filepath.Join(e.ImageRoot, e.Local)
	}
	return filepath.Join(e.ImageRoot, e.Local+".raw")
}

// worded is an error in words of its own, such as stock's, which people and scripts know.
type worded struct {
	text string
	err  error
}

func (w *worded) Error() string { return w.text }
func (w *worded) Unwrap() error { return w.err }

// tellRoot says where images are made.
func (e *engine) tellRoot() { e.logf(Info, "Operating on image directory '%s'.", e.ImageRoot) }

// checkFree makes sure, before any work is done, that the image may be made.
func (e *engine) checkFree(ctx context.Context) error {
	if e.Force {
		return e.replacing(e.store.Removable(ctx, e.Local))
	}
	_, err := e.store.Get(ctx, e.Local)
	if errors.Is(err, image.ErrNoSuchImage) {
		return nil
	}
	if err != nil {
		return err
	}
	return e.exists()
}

func (e *engine) exists() error {
	return &worded{fmt.Sprintf("Image '%s' already exists.", e.Local), image.ErrExists}
}

// replacing is what removing the image that a forced transfer replaces came to.
func (e *engine) replacing(err error) error {
	switch {
	case errors.Is(err, image.ErrNoSuchImage):
		return nil
	case errors.Is(err, image.ErrBusy):
		return &worded{fmt.Sprintf("Image '%s' is currently busy, not replacing.", e.Local), err}
	}
	return err
}

// makeWay removes the image that a forced transfer replaces.
func (e *engine) makeWay(ctx context.Context) error {
	if !e.Force {
		return nil
	}
	return e.replacing(e.store.Remove(ctx, e.Local))
}

// liftTree moves an OS tree that an archive wraps in one directory up to the root.
func (e *engine) liftTree(root string) error {
	if isOS(root) {
		return nil
	}
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) != 1 || !entries[0].IsDir() {
		return err
	}
	inner := filepath.Join(root, entries[0].Name())
	if !isOS(inner) {
		return nil
	}
	e.logf(Info, "Rearranging '%s', moving OS tree one directory up.", entries[0].Name())
	// Out of the way first: the tree may hold an entry of the same name.
	temp := filepath.Join(root, image.TempName("tree"))
	if err := os.Rename(inner, temp); err != nil {
		return err
	}
	children, err := os.ReadDir(temp)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := os.Rename(filepath.Join(temp, child.Name()), filepath.Join(root, child.Name())); err != nil {
			return err
		}
	}
	if st, err := os.Stat(temp); err == nil {
		var raw unix.Stat_t
		if unix.Stat(temp, &raw) == nil {
			_ = os.Chown(root, int(raw.Uid), int(raw.Gid))
			_ = os.Chmod(root, st.Mode())
			defer func() { _ = os.Chtimes(root, st.ModTime(), st.ModTime()) }()
		}
	}
	return os.Remove(temp)
}

func isOS(dir string) bool {
	for _, name := range []string{"usr", "etc", "bin", "sbin", "lib"} {
		if st, err := os.Lstat(filepath.Join(dir, name)); err == nil && (st.IsDir() || strings.Contains("bin sbin lib", name)) {
			return true
		}
	}
	return false
}

// counter counts what passes through it.
type counter struct {
	r    io.Reader
	n    int64
	tell func(n int64)
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	if n > 0 && c.tell != nil {
		c.tell(c.n)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = &sourceError{err}
	}
	return n, err
}

// sourceError is a failure of what is read, as opposed to what it holds.
type sourceError struct{ err error }

func (s *sourceError) Error() string { return s.err.Error() }
func (s *sourceError) Unwrap() error { return s.err }
