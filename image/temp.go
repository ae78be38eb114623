package image

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"machined/internal/btrfs"
	"machined/internal/overlay"
	"machined/internal/pathlock"

	"golang.org/x/sys/unix"
)

// tempPrefix starts the names of what operations build before it gets its name.
// Such a file is locked (flock(2)) by its maker, so one that nobody holds is left
// over from a crash.
const tempPrefix = ".#machined-"

// TempName returns a fresh hidden name for something that will become name.
func TempName(name string) string {
	var raw [8]byte
	_, _ = rand.Read(raw[:])
	if len(name) > 200 {
		name = name[:200]
	}
	return tempPrefix + strings.TrimLeft(name, ".") + hex.EncodeToString(raw[:])
}

// HoldTemp locks an open temporary file or directory as in use by its maker for
// as long as the descriptor, or a copy of it, is open.
func HoldTemp(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("hold %q: %w", f.Name(), err)
	}
	return nil
}

// GuardTemp keeps CleanTemporary away from dir until the returned function is called:
// a file is there before its maker can hold it.
func GuardTemp(dir string) (release func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		_ = f.Close()
		return nil, os.NewSyscallError("flock", err)
	}
	return func() { _ = f.Close() }, nil
}

// CleanTemporary removes from dir what operations that were killed left behind.
// What a running operation holds is left alone.
func CleanTemporary(dir string) error {
	left, err := abandoned(dir)
	errs := []error{err}
	for _, f := range left {
		errs = append(errs, RemoveTree(f.Name()))
		_ = f.Close()
	}
	return errors.Join(errs...)
}

// abandoned finds the temporary files that nobody holds, and holds them.
func abandoned(dir string) ([]*os.File, error) {
	fail := func(err error) ([]*os.File, error) { return nil, fmt.Errorf("clean %q: %w", dir, err) }
	all, err := os.Open(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return fail(err)
	}
	defer func() { _ = all.Close() }()
	if err := unix.Flock(int(all.Fd()), unix.LOCK_EX); err != nil {
		return fail(os.NewSyscallError("flock", err))
	}
	entries, err := all.ReadDir(-1)
	if err != nil {
		return fail(err)
	}
	var left []*os.File
	var errs []error
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".#") && strings.HasSuffix(entry.Name(), ".lck") && entry.Type().IsRegular() {
			// A lock file whose holder was killed; taking and releasing it removes it.
			if lock, err := pathlock.File(filepath.Join(dir, entry.Name()), false); err == nil {
				lock.Close()
			}
			continue
		}
		if !strings.HasPrefix(entry.Name(), tempPrefix) {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			f := os.NewFile(uintptr(fd), path)
			if err = HoldTemp(f); err == nil {
				left = append(left, f)
				continue
			}
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = nil
			}
		case errors.Is(err, unix.ELOOP):
			err = os.Remove(path) // a symlink has no holder
		case errors.Is(err, unix.ENOENT):
			err = nil
		}
		errs = append(errs, err)
	}
	return left, errors.Join(errs...)
}

// CleanTemporary removes what killed operations left in the pool and on the
// search path, and mounts the images that are kept as layers. It is called once
// at start.
func (s *Store) CleanTemporary() error {
	errs := []error{overlay.Pool(s.cfg.PoolDir).Recover()}
	dirs := append([]string{s.cfg.PoolDir, filepath.Join(s.cfg.PoolDir, SnapshotsDir)}, s.cfg.SearchPath...)
	if of, err := filepath.Glob(filepath.Join(s.cfg.PoolDir, SnapshotsDir, "*")); err == nil {
		dirs = append(dirs, of...)
	}
	for _, dir := range dirs {
		if !strings.HasPrefix(dir, "/usr/") {
			errs = append(errs, CleanTemporary(dir))
		}
	}
	return errors.Join(errs...)
}

// RemoveTree removes a file, directory or subvolume with all that is in it, also
// what is marked immutable or read-only. A symlink is removed, never followed.
func RemoveTree(path string) error {
	parent, name := filepath.Split(path)
	dir, err := os.Open(filepath.Clean(parent))
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		_ = setImmutable(path, false)
		if node, err := openNode(path); err == nil {
			subvolume := btrfs.IsSubvolume(node)
			_ = node.Close()
			if subvolume {
				if err := btrfs.DestroyTree(dir, name); err == nil {
					return nil
				}
			}
		}
	}
	err = os.RemoveAll(path)
	if errors.Is(err, unix.EACCES) && os.Geteuid() != 0 && openDirectories(path) {
		err = os.RemoveAll(path)
	}
	for tries := 0; errors.Is(err, unix.EPERM) && tries < 64; tries++ {
		// Something inside is immutable: clear that and go on.
		if !clearImmutable(path) {
			return err
		}
		err = os.RemoveAll(path)
	}
	return err
}

// openDirectories lets their owner into all directories of a tree, who needs that to
// remove what is in them, and says whether that changed any.
func openDirectories(path string) bool {
	changed := false
	_ = filepath.WalkDir(path, func(p string, d os.DirEntry, err error) error {
		if d == nil || !d.IsDir() {
			return nil
		}
		if info, statErr := os.Lstat(p); statErr == nil && info.Mode().Perm()&0o700 != 0o700 && os.Chmod(p, info.Mode().Perm()|0o700) == nil {
			changed = true
		}
		return nil
	})
	return changed
}

// clearImmutable clears the immutable mark of all in a tree, and says whether
// there was any.
func clearImmutable(path string) bool {
	any := false
	_ = filepath.WalkDir(path, func(p string, d os.DirEntry, err error) error {
		if err == nil && (d.IsDir() || d.Type().IsRegular()) {
			if immutable(p) && setImmutable(p, false) == nil {
				any = true
			}
		}
		return nil
	})
	return any
}

func immutable(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	return err == nil && flags&immutableFlag != 0
}

// setImmutable sets or clears the immutable mark (chattr +i) of a file.
func setImmutable(path string, on bool) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return os.NewSyscallError("ioctl FS_IOC_GETFLAGS", err)
	}
	want := flags &^ immutableFlag
	if on {
		want |= immutableFlag
	}
	if want == flags {
		return nil
	}
	return os.NewSyscallError("ioctl FS_IOC_SETFLAGS", unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, want))
}

// syncDir writes a directory's entries to the disk.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return dir.Sync()
}

// renameNew renames oldPath to newPath, which must not exist: ErrExists if it does.
func renameNew(oldPath, newPath string) error {
	err := unix.Renameat2(unix.AT_FDCWD, oldPath, unix.AT_FDCWD, newPath, unix.RENAME_NOREPLACE)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%w: %q", ErrExists, newPath)
	}
	return &os.LinkError{Op: "rename", Old: oldPath, New: newPath, Err: err}
}
