package image

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"machined/internal/btrfs"
	"machined/internal/durable"
	"machined/internal/treecopy"

	"golang.org/x/sys/unix"
)

// copied is the copy of an image that has no name yet.
type copied struct {
	path      string // temporary; "" once it has its name
	f         *os.File
	tree      bool
	subvolume bool
	shared    bool // a snapshot: its content is on the disk as far as the original's is
	limit     uint64
	early     *durable.Writeback // nil: all is written in the end
}

// copyImage makes a copy of an image, or of a snapshot, under a temporary name in
// dir. Its maker calls finish and place, or drops it.
func copyImage(ctx context.Context, img Image, dir, name string) (*copied, error) {
	c := &copied{path: filepath.Join(dir, TempName(name)), tree: img.Type != TypeRaw, limit: Unknown}
	if img.Type == TypeSubvolume {
		c.limit = img.Limit
	}
	var err error
	if c.tree {
		err = c.copyTree(ctx, img.Path, dir)
	} else {
		err = c.copyFile(ctx, img)
	}
	if err != nil {
		c.drop()
		return nil, err
	}
	return c, nil
}

// drop removes what has not got its name.
func (c *copied) drop() {
	_ = c.early.Wait()
	if c.path != "" {
		_ = RemoveTree(c.path)
	}
	if c.f != nil {
		_ = c.f.Close()
	}
}

func (c *copied) copyFile(ctx context.Context, img Image) error {
	src, err := os.Open(img.Path)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	release, err := GuardTemp(filepath.Dir(c.path))
	if err != nil {
		return err
	}
	if c.f, err = os.OpenFile(c.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
		err = HoldTemp(c.f)
	}
	release()
	if err != nil {
		return err
	}
	if unix.IoctlFileClone(int(c.f.Fd()), int(src.Fd())) != nil {
		if err := treecopy.Content(ctx, src, c.f, st.Size(), nil); err != nil {
			return err
		}
	}
	if err := c.f.Chmod(0o644); err != nil {
		return err
	}
	if !img.Created.IsZero() {
		_ = keepCreated(c.f, img.Created) // what it cannot keep is not missed
	}
	return os.Chtimes(c.path, st.ModTime(), st.ModTime())
}

// makeTree makes an empty tree in dir.
func (c *copied) makeTree(dir string) error {
	pool, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = pool.Close() }()
	release, err := GuardTemp(dir)
	if err != nil {
		return err
	}
	defer release()
	if err := MakeTree(pool, filepath.Base(c.path)); err != nil {
		return err
	}
	if c.f, err = os.Open(c.path); err != nil {
		return err
	}
	c.subvolume = btrfs.IsSubvolume(c.f)
	return HoldTemp(c.f)
}

func (c *copied) copyTree(ctx context.Context, path, dir string) error {
	src, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	pool, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = pool.Close() }()
	release, err := GuardTemp(dir)
	if err != nil {
		return err
	}
	release = sync.OnceFunc(release)
	defer release()
	tempName := filepath.Base(c.path)
	if btrfs.IsSubvolume(src) && btrfs.IsBtrfs(pool) {
		err := btrfs.SnapshotTree(src, pool, tempName, false)
		if err != nil && !errors.Is(err, unix.EXDEV) {
			return err
		}
		c.shared = err == nil
	}
	if !c.shared {
		if err := MakeTree(pool, tempName); err != nil {
			return err
		}
	}
	if c.f, err = os.Open(c.path); err != nil {
		return err
	}
	if err := HoldTemp(c.f); err != nil {
		return err
	}
	release()
	c.subvolume = btrfs.IsSubvolume(c.f)
	if c.shared {
		return nil
	}
	opts := treecopy.Options{SameMount: true}
	if durable.Late(c.f) {
		c.early = durable.NewWriteback(c.f)
		opts.Progress = c.early.Add
	}
	return treecopy.Copy(ctx, src, c.f, opts)
}

// finish gets the copy onto the disk. Nothing in it changes afterwards.
func (c *copied) finish() error {
	if !c.tree {
		return c.f.Sync()
	}
	if c.subvolume {
		// Without quota there is nothing to count, and no limit to carry over.
		if accountIn(c.f, filepath.Dir(c.path)) == nil && c.limit != Unknown {
			if err := btrfs.SetLimit(c.f, c.limit); err != nil {
				return quotaError("the copy", err)
			}
		}
	}
	if c.shared {
		return nil
	}
	early := c.early.Wait()
	return errors.Join(early, durable.Tree(c.f))
}

// place gives a finished copy its name, which must be free, and its mark.
func (c *copied) place(target string, readOnly bool) error {
	if err := c.markBefore(readOnly); err != nil {
		return err
	}
	if err := renameNew(c.path, target); err != nil {
		return err
	}
	c.path = ""
	return c.markAfter(target, readOnly)
}

// markBefore sets the read-only marks that do not hinder a rename.
func (c *copied) markBefore(readOnly bool) error {
	switch {
	case !readOnly:
		return nil
	case !c.tree:
		return c.f.Chmod(0o444)
	case c.subvolume:
		return btrfs.SetReadOnly(c.f, true)
	}
	return nil
}

// markAfter sets the one that does: an immutable directory cannot be renamed.
func (c *copied) markAfter(target string, readOnly bool) error {
	if !readOnly || !c.tree || c.subvolume {
		return nil
	}
	if err := setImmutable(target, true); err != nil && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	return nil
}

// swap puts a finished copy in the place of the image at path at once, and
// removes what was there.
func (c *copied) swap(path string, st fs.FileInfo, readOnly bool) error {
	if !c.tree {
		if err := c.markBefore(readOnly); err != nil {
			return err
		}
	}
	if st.IsDir() {
		if err := setImmutable(path, false); err != nil && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
		if old, err := os.Open(path); err == nil {
			if btrfs.IsSubvolume(old) {
				_ = btrfs.SetReadOnly(old, false) // the kernel renames none that is read-only
			}
			_ = old.Close()
		}
	}
	if err := unix.Renameat2(unix.AT_FDCWD, c.path, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE); err != nil {
		return &os.LinkError{Op: "exchange", Old: c.path, New: path, Err: err}
	}
	old := c.path
	c.path = ""
	err := errors.Join(c.markBefore(readOnly), c.markAfter(path, readOnly), syncDir(filepath.Dir(path)))
	return errors.Join(err, RemoveTree(old))
}
