package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"machined/internal/btrfs"
	"machined/internal/treecopy"

	"golang.org/x/sys/unix"
)

// CloneOptions say how a clone differs from its original.
type CloneOptions struct {
	ReadOnly bool
	// NewIdentity gives the clone of a tree a machine id and a host name of its
	// own where the original has them, so that both may run side by side.
	NewIdentity bool
	// Overlay lets the clone share the files of its original by overlayfs, which
	// takes no time whatever the size. Where that cannot be, as while the original
	// is in use, the clone is a copy all the same.
	Overlay bool
}

// Clone makes an independent copy of an image under newName in the pool: a
// snapshot or shared extents where the file system can, else a copy. Nothing can
// be seen under the new name before the copy is complete and on the disk.
func (s *Store) Clone(ctx context.Context, name, newName string, readOnly bool) error {
	return s.CloneWith(ctx, name, newName, CloneOptions{ReadOnly: readOnly})
}

// CloneWith is Clone with options.
func (s *Store) CloneWith(ctx context.Context, name, newName string, opts CloneOptions) error {
	if err := CheckName(newName); err != nil {
		return err
	}
	img, err := s.Get(ctx, name)
	if err != nil {
		return err
	}
	fail := func(err error) error { return copying(name, err) }
	if err := copyable(img); err != nil && img.Type != TypeMStack {
		return fail(err)
	}
	lock, err := s.reserve(ctx, newName)
	if err != nil {
		return fail(err)
	}
	defer lock.Close()
	if err := os.MkdirAll(s.cfg.PoolDir, 0o700); err != nil {
		return fail(err)
	}
	if img.Type == TypeMStack {
		err := s.cloneStack(ctx, img, newName, opts)
		if err == nil {
			err = s.cloneAuxiliary(ctx, img, newName)
		}
		if err != nil {
			return fail(err)
		}
		return syncDir(s.cfg.PoolDir)
	}
	if !opts.NewIdentity {
		if done, err := s.cloneAtOnce(img, newName, opts.ReadOnly); err != nil {
			return fail(err)
		} else if done {
			if err := s.cloneAuxiliary(ctx, img, newName); err != nil {
				return fail(err)
			}
			return nil
		}
	}
	if opts.Overlay {
		err := s.cloneLayers(img, newName, opts)
		switch {
		case err == nil:
			if err := s.cloneAuxiliary(ctx, img, newName); err != nil {
				return fail(err)
			}
			return nil
		case !errors.Is(err, ErrNotSupported) && !errors.Is(err, ErrBusy):
			return fail(err)
		}
		s.log.WithField("image", name).WithError(err).Info("Clone is made by copying.")
	}
	c, err := copyImage(ctx, img, s.cfg.PoolDir, newName)
	if err != nil {
		return fail(err)
	}
	defer c.drop()
	if opts.NewIdentity && c.tree {
		if err := newIdentity(int(c.f.Fd()), newName); err != nil {
			return fail(fmt.Errorf("give it an identity: %w", err))
		}
	}
	if err := c.finish(); err != nil {
		return fail(err)
	}
	target := filepath.Join(s.cfg.PoolDir, newName)
	if !c.tree {
		target += rawSuffix
	}
	if err := c.place(target, opts.ReadOnly); err != nil {
		return fail(err)
	}
	if err := s.cloneAuxiliary(ctx, img, newName); err != nil {
		return fail(err)
	}
	return syncDir(s.cfg.PoolDir)
}

// cloneAtOnce makes the clone by one step of the file system, where one is enough: a
// snapshot of a subvolume with none nested in it, on a file system that counts
// nothing. The kernel has it on the disk, as a whole, before that returns. False says
// that it takes more than that.
func (s *Store) cloneAtOnce(img Image, newName string, readOnly bool) (bool, error) {
	if img.Type != TypeSubvolume || img.Limit != Unknown {
		return false, nil
	}
	src, err := os.Open(img.Path)
	if err != nil {
		return false, err
	}
	defer func() { _ = src.Close() }()
	pool, err := os.Open(s.cfg.PoolDir)
	if err != nil {
		return false, err
	}
	defer func() { _ = pool.Close() }()
	if !btrfs.IsSubvolume(src) || !btrfs.IsBtrfs(pool) {
		return false, nil
	}
	if _, err := btrfs.Quota(src); err == nil {
		return false, nil
	}
	if nested, err := btrfs.Nested(src); err != nil || nested {
		return false, err
	}
	err = btrfs.Snapshot(src, pool, newName, readOnly)
	switch {
	case errors.Is(err, unix.EXDEV):
		return false, nil
	case errors.Is(err, unix.EEXIST):
		return false, fmt.Errorf("%w: %q", ErrExists, filepath.Join(s.cfg.PoolDir, newName))
	}
	return err == nil, err
}

// copyable returns an error for images of which no copy can be made.
func copyable(img Image) error {
	switch {
	case img.IsHost():
		return tell(ErrHostTree, "image %q is the host's own tree, of which no copy can be made", img.Name)
	case img.Type == TypeBlock || img.Type == TypeMStack:
		return cannot(img, "cannot be copied")
	}
	return nil
}

// MakeTree makes an empty directory in an open directory for the tree of an
// image: a subvolume where the file system has them, which counts against the limit
// of the pool from its start.
func MakeTree(dir *os.File, name string) error {
	if btrfs.IsBtrfs(dir) {
		if err := btrfs.Create(dir, name); err == nil {
			if made, err := os.Open(filepath.Join(dir.Name(), name)); err == nil {
				_ = btrfs.Account(made, dir) // without quota there is nothing to count
				_ = made.Close()
			}
			return nil
		}
	}
	if err := unix.Mkdirat(int(dir.Fd()), name, 0o755); err != nil {
		return &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return nil
}

// cloneAuxiliary copies the files that lie beside an image for its clone, and has
// their names on the disk.
func (s *Store) cloneAuxiliary(ctx context.Context, img Image, newName string) error {
	copied := img
	copied.Name = newName
	copied.Path = filepath.Join(s.cfg.PoolDir, newName)
	from, to := s.auxiliary(img), s.auxiliary(copied)
	for i := range from {
		st, err := os.Lstat(from[i])
		if err != nil || !st.Mode().IsRegular() {
			continue
		}
		srcDir, err := os.Open(filepath.Dir(from[i]))
		if err != nil {
			return err
		}
		dstDir, err := os.Open(filepath.Dir(to[i]))
		if err == nil {
			err = treecopy.CopyEntry(ctx, srcDir, filepath.Base(from[i]), dstDir, filepath.Base(to[i]), treecopy.Options{})
			_ = dstDir.Close()
		}
		_ = srcDir.Close()
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err == nil {
			err = syncDir(filepath.Dir(to[i]))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
