package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"machined/internal/btrfs"
	"machined/internal/pathlock"

	"golang.org/x/sys/unix"
)

// changeable returns ErrReadOnly for images that nobody may change.
func changeable(img Image) error {
	switch {
	case img.IsHost():
		return tell(ErrReadOnly, "image %q is the host itself", img.Name)
	case img.Vendor():
		return tell(ErrReadOnly, "image %q is part of the operating system, in %q", img.Name, filepath.Dir(img.Path))
	}
	return nil
}

// lockImage locks an image against the spawner and against other changes.
func (s *Store) lockImage(img Image, exclusive bool) (*pathlock.Lock, error) {
	path, err := filepath.EvalSymlinks(img.Path)
	if err != nil {
		return nil, on(img.Name, err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, on(img.Name, err)
	}
	lock, err := pathlock.Locks{Dir: s.cfg.LockDir}.Image(path, exclusive)
	if errors.Is(err, pathlock.ErrBusy) {
		return nil, busy(img.Name)
	}
	var file *fs.PathError
	if errors.As(err, &file) {
		return nil, on(img.Name, fmt.Errorf("lock it: %w", file.Err))
	}
	return lock, err
}

// reserve makes sure that a new image may be called name: it is valid, no image
// has it, and nobody else is making one. The lock is closed when the image is there.
func (s *Store) reserve(ctx context.Context, name string) (*pathlock.Lock, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if name == HostName {
		return nil, tell(ErrBusy, "%q is the name of the host itself", name)
	}
	lock, err := pathlock.Locks{Dir: s.cfg.LockDir}.Name(name, true)
	if errors.Is(err, pathlock.ErrBusy) {
		return nil, tell(ErrBusy, "image %q is being made by somebody else", name)
	}
	if err != nil {
		return nil, err
	}
	_, err = s.Get(ctx, name)
	if err == nil {
		lock.Close()
		return nil, tell(ErrExists, "image %q exists already", name)
	}
	if !errors.Is(err, ErrNoSuchImage) {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// Remove deletes an image with the files that belong to it. A symlink to an
// image is removed, not what it points to. It returns ErrBusy for an image in use
// and ErrReadOnly for one that belongs to the host.
func (s *Store) Remove(ctx context.Context, name string) error {
	img, err := s.Get(ctx, name)
	if err != nil {
		return err
	}
	return s.remove(img)
}

// Removable says whether Remove would begin its work on an image now: ErrBusy while
// something uses it, ErrReadOnly where it is part of the host.
func (s *Store) Removable(ctx context.Context, name string) error {
	img, err := s.Get(ctx, name)
	if err != nil {
		return err
	}
	if err := changeable(img); err != nil {
		return err
	}
	lock, err := s.lockImage(img, true)
	if err != nil {
		return err
	}
	lock.Close()
	return nil
}

func (s *Store) remove(img Image) error {
	if err := changeable(img); err != nil {
		return err
	}
	if s.isLayer(img) {
		if err := s.removeLayer(img.Name, false); err != nil {
			return err
		}
		return nil
	}
	var layers []string
	if img.Type == TypeMStack {
		layers = layersOf(img.Path)
	}
	lock, err := s.lockImage(img, true)
	if err != nil {
		return err
	}
	defer lock.Close()
	st, err := os.Lstat(img.Path)
	if err != nil {
		return on(img.Name, err)
	}
	if img.Type == TypeBlock && st.Mode().Type() != fs.ModeSymlink && strings.HasPrefix(img.Path, "/dev/") {
		return cannot(img, "cannot be removed from /dev")
	}
	if pool, ok := s.layered(img); ok {
		err = layerError(pool.Remove(img.Name))
	} else {
		err = removeAtOnce(img.Path, st)
	}
	if err != nil {
		return on(img.Name, err)
	}
	for _, path := range s.auxiliary(img) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return on(img.Name, err)
		}
	}
	if err := s.removeSnapshots(img.Name); err != nil {
		return on(img.Name, fmt.Errorf("remove its snapshots: %w", err))
	}
	s.DropLayers(layers)
	return nil
}

// removeAtOnce takes the name away first, so that a crash leaves either the
// whole image or a leftover that the next start removes.
func removeAtOnce(path string, st fs.FileInfo) error {
	dir := filepath.Dir(path)
	if !st.IsDir() {
		if err := os.Remove(path); err != nil {
			return err
		}
		return syncDir(dir)
	}
	if err := setImmutable(path, false); err != nil && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EROFS) {
		return err
	}
	node, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = node.Close() }()
	_ = HoldTemp(node)
	if btrfs.IsSubvolume(node) {
		if err := btrfs.SetReadOnly(node, false); err != nil {
			return err
		}
	}
	temp := filepath.Join(dir, TempName(filepath.Base(path)))
	if err := renameNew(path, temp); err != nil {
		if errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.ENOSPC) {
			return RemoveTree(path) // there is no room for another name, and this makes some
		}
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	return RemoveTree(temp)
}

// auxiliary lists where the files that belong to an image may lie.
func (s *Store) auxiliary(img Image) []string {
	var list []string
	for _, suffix := range AuxiliarySuffixes {
		list = append(list, filepath.Join(filepath.Dir(img.Path), img.Name+suffix))
	}
	for _, dir := range s.cfg.NspawnDirs {
		list = append(list, filepath.Join(dir, img.Name+".nspawn"))
	}
	return list
}

// Rename gives an image another name, in the directory where it is, with the
// files that belong to it.
func (s *Store) Rename(ctx context.Context, name, newName string) error {
	if err := CheckName(newName); err != nil {
		return err
	}
	img, err := s.Get(ctx, name)
	if err != nil {
		return err
	}
	fail := func(err error) error { return on(name, err) }
	if err := changeable(img); err != nil {
		return fail(err)
	}
	switch {
	case strings.HasSuffix(filepath.Dir(img.Path), pickSuffix):
		return tell(ErrNotSupported, "image %q is a version in %q, which would be none any more", name, filepath.Dir(img.Path))
	case s.isLayer(img):
		return tell(ErrNotSupported, "image %q is a layer, which has its name from its content", name)
	case img.Type == TypeBlock && strings.HasPrefix(img.Path, "/dev/"):
		return cannot(img, "cannot be renamed in /dev")
	}
	lock, err := s.lockImage(img, true)
	if err != nil {
		return fail(err)
	}
	defer lock.Close()
	newLock, err := s.reserve(ctx, newName)
	if err != nil {
		return fail(err)
	}
	defer newLock.Close()

	dir := filepath.Dir(img.Path)
	target := filepath.Join(dir, newName)
	if strings.HasSuffix(img.Path, rawSuffix) && img.Type != TypeDirectory && img.Type != TypeSubvolume {
		target += rawSuffix
	}
	if img.Type == TypeMStack {
		target += mstackSuffix
	}
	if pool, ok := s.layered(img); ok {
		if err := pool.Rename(name, newName); err != nil {
			return fail(layerError(err))
		}
		if err := s.renameAuxiliary(img, newName); err != nil {
			return fail(err)
		}
		return syncDir(dir)
	}
	isLink := false
	if st, err := os.Lstat(img.Path); err == nil {
		isLink = st.Mode().Type() == fs.ModeSymlink
	}
	frozen := !isLink && img.Type == TypeDirectory && immutable(img.Path)
	if frozen {
		if err := setImmutable(img.Path, false); err != nil {
			return fail(err)
		}
	}
	err = renameNew(img.Path, target)
	if frozen {
		after := target
		if err != nil {
			after = img.Path
		}
		err = errors.Join(err, setImmutable(after, true))
	}
	if err != nil {
		return fail(err)
	}
	if err := s.renameAuxiliary(img, newName); err != nil {
		return fail(err)
	}
	return syncDir(dir)
}

// renameAuxiliary lets what belongs to an image follow it to its new name.
func (s *Store) renameAuxiliary(img Image, newName string) error {
	renamed := img
	renamed.Name = newName
	from, to := s.auxiliary(img), s.auxiliary(renamed)
	for i := range from {
		if err := renameNew(from[i], to[i]); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrExists) {
			return err
		}
	}
	return s.renameSnapshots(img.Name, newName)
}

// SetReadOnly marks an image read-only or writable.
func (s *Store) SetReadOnly(ctx context.Context, name string, readOnly bool) error {
	img, err := s.Get(ctx, name)
	if err != nil {
		return err
	}
	fail := func(err error) error { return on(name, err) }
	if img.Hidden() {
		return tell(ErrReadOnly, "image %q is hidden, and so always read-only", name)
	}
	if err := changeable(img); err != nil {
		return fail(err)
	}
	lock, err := s.lockImage(img, true)
	if err != nil {
		return fail(err)
	}
	defer lock.Close()
	if pool, ok := s.layered(img); ok {
		err = pool.SetReadOnly(name, readOnly)
	} else {
		err = s.markReadOnly(img, readOnly)
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

func (s *Store) markReadOnly(img Image, readOnly bool) error {
	path, err := filepath.EvalSymlinks(img.Path)
	if err != nil {
		return err
	}
	switch img.Type {
	case TypeDirectory:
		err := setImmutable(path, readOnly)
		if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
			return tell(ErrNotSupported, "image %q lies on a file system that has no immutable directories", img.Name)
		}
		return err
	case TypeSubvolume:
		dir, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = dir.Close() }()
		return btrfs.SetReadOnly(dir, readOnly)
	case TypeRaw:
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		mode := st.Mode().Perm() & 0o444
		if !readOnly {
			mode |= 0o200
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
		if readOnly {
			if f, err := os.OpenFile(path, os.O_RDONLY, 0); err == nil {
				if btrfs.IsBtrfs(f) {
					_ = btrfs.Defragment(f) // only makes reading faster
				}
				_ = f.Close()
			}
		}
		return nil
	case TypeBlock:
		dev, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		if err != nil {
			return err
		}
		defer func() { _ = dev.Close() }()
		return setBlockReadOnly(dev, readOnly)
	default:
		return cannot(img, "is read-only when it has no layer for changes")
	}
}

// SetLimit bounds the size of an image in bytes; Unknown lifts the limit. Only
// subvolumes can be limited.
func (s *Store) SetLimit(ctx context.Context, name string, limit uint64) error {
	img, err := s.Get(ctx, name)
	if err != nil {
		return err
	}
	fail := func(err error) error { return on(name, err) }
	if err := changeable(img); err != nil {
		return fail(err)
	}
	if img.Type != TypeSubvolume {
		return cannot(img, "can have no limit")
	}
	dir, err := os.Open(img.Path)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = dir.Close() }()
	// Where the limit has been reached already no group can be made; there is one then.
	if err := accountIn(dir, filepath.Dir(img.Path)); err != nil && !errors.Is(err, unix.EDQUOT) {
		return fail(quotaError(fmt.Sprintf("image %q", name), err))
	}
	if err := btrfs.SetLimit(dir, limit); err != nil {
		return fail(quotaError(fmt.Sprintf("image %q", name), err))
	}
	return nil
}

// accountIn has a subvolume counted as a part of the directory that it lies in.
func accountIn(dir *os.File, parent string) error {
	pool, err := os.Open(parent)
	if err != nil {
		return err
	}
	defer func() { _ = pool.Close() }()
	return btrfs.Account(dir, pool)
}

// quotaError tells that what cannot have its limit because quota is off.
func quotaError(what string, err error) error {
	if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTTY) {
		return tell(ErrNotSupported, "%s can have no limit, as quota is off on its file system", what)
	}
	return err
}
