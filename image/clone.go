package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"machined/internal/btrfs"
	"machined/internal/durable"
	"machined/internal/treecopy"

	"golang.org/x/sys/unix"
)

// Clone makes an independent copy of an image under newName in the pool: a
// snapshot or shared extents where the file system can, else a copy. Nothing can
// be seen under the new name before the copy is complete and on the disk.
func (s *Store) Clone(ctx context.Context, name, newName string, readOnly bool) error {
	if err := CheckName(newName); err != nil {
		return err
	}
	img, err := s.Get(ctx, name)
	if err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("clone image %q to %q: %w", name, newName, err) }
	if img.IsHost() {
		return fail(ErrHostTree)
	}
	if img.Type == TypeBlock || img.Type == TypeMStack {
		return fail(ErrNotSupported)
	}
	lock, err := s.reserve(ctx, newName)
	if err != nil {
		return fail(err)
	}
	defer lock.Close()
	if err := os.MkdirAll(s.cfg.PoolDir, 0o700); err != nil {
		return fail(err)
	}
	if img.Type == TypeRaw {
		err = s.cloneRaw(ctx, img, newName, readOnly)
	} else {
		err = s.cloneTree(ctx, img, newName, readOnly)
	}
	if err != nil {
		return fail(err)
	}
	if err := s.cloneAuxiliary(ctx, img, newName); err != nil {
		return fail(err)
	}
	return syncDir(s.cfg.PoolDir)
}

func (s *Store) cloneRaw(ctx context.Context, img Image, newName string, readOnly bool) error {
	src, err := os.Open(img.Path)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	temp := filepath.Join(s.cfg.PoolDir, TempName(newName))
	dst, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = dst.Close(); _ = os.Remove(temp) }()
	if err := HoldTemp(dst); err != nil {
		return err
	}
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) != nil {
		if err := treecopy.Content(ctx, src, dst, st.Size(), nil); err != nil {
			return err
		}
	}
	mode := fs.FileMode(0o644)
	if readOnly {
		mode = 0o444
	}
	if err := dst.Chmod(mode); err != nil {
		return err
	}
	if !img.Created.IsZero() {
		_ = keepCreated(dst, img.Created) // what it cannot keep is not missed
	}
	if err := os.Chtimes(temp, st.ModTime(), st.ModTime()); err != nil {
		return err
	}
	if err := dst.Sync(); err != nil {
		return err
	}
	return renameNew(temp, filepath.Join(s.cfg.PoolDir, newName+rawSuffix))
}

func (s *Store) cloneTree(ctx context.Context, img Image, newName string, readOnly bool) error {
	src, err := os.Open(img.Path)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	pool, err := os.Open(s.cfg.PoolDir)
	if err != nil {
		return err
	}
	defer func() { _ = pool.Close() }()

	tempName := TempName(newName)
	temp, target := filepath.Join(s.cfg.PoolDir, tempName), filepath.Join(s.cfg.PoolDir, newName)
	defer func() { _ = RemoveTree(temp) }()

	snapshot := false
	if btrfs.IsSubvolume(src) && btrfs.IsBtrfs(pool) {
		err := btrfs.SnapshotTree(src, pool, tempName, false)
		if err != nil && !errors.Is(err, unix.EXDEV) {
			return err
		}
		snapshot = err == nil
	}
	if !snapshot {
		if err := MakeTree(pool, tempName); err != nil {
			return err
		}
	}
	dst, err := os.Open(temp)
	if err != nil {
		return err
	}
	defer func() { _ = dst.Close() }()
	if err := HoldTemp(dst); err != nil {
		return err
	}
	if !snapshot {
		if err := treecopy.Copy(ctx, src, dst, treecopy.Options{SameMount: true, Settled: settled(dst)}); err != nil {
			return err
		}
	}
	subvolume := btrfs.IsSubvolume(dst)
	if subvolume {
		// Without quota there is nothing to count, and no limit to carry over.
		if btrfs.AccountSubtree(dst) == nil && img.Limit != Unknown && img.Type == TypeSubvolume {
			if err := btrfs.SetLimit(dst, img.Limit); err != nil {
				return quotaError(err)
			}
		}
	}
	if !snapshot {
		if err := durable.Tree(dst); err != nil {
			return err
		}
	}
	if readOnly && subvolume {
		if err := btrfs.SetReadOnly(dst, true); err != nil {
			return err
		}
	}
	if err := renameNew(temp, target); err != nil {
		return err
	}
	if readOnly && !subvolume {
		// An immutable directory cannot be renamed, so this comes last.
		if err := setImmutable(target, true); err != nil && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	return nil
}

// settled starts the writing of files while others are still copied, where that
// spares a long wait in the end.
func settled(dst *os.File) func(fd int) {
	if !durable.OwnFiles(int(dst.Fd())) {
		return nil
	}
	return durable.Start
}

// MakeTree makes an empty directory in an open directory for the tree of an
// image: a subvolume where the file system has them.
func MakeTree(dir *os.File, name string) error {
	if btrfs.IsBtrfs(dir) {
		if err := btrfs.Create(dir, name); err == nil {
			return nil
		}
	}
	if err := unix.Mkdirat(int(dir.Fd()), name, 0o755); err != nil {
		return &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return nil
}

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
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return nil
}
