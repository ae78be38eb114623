package btrfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

const iocInoLookup = 0xd0009412

// lookup returns the path of a directory inode, relative to the root of its
// subvolume, with a slash at its end, or "" for the root.
func lookup(f *os.File, subvolume, inode uint64) (string, error) {
	var args [4096]byte // treeid, objectid, name
	binary.LittleEndian.PutUint64(args[0:], subvolume)
	binary.LittleEndian.PutUint64(args[8:], inode)
	if err := ioctl(f, "BTRFS_IOC_INO_LOOKUP", iocInoLookup, unsafe.Pointer(&args)); err != nil {
		return "", err
	}
	name := args[16:]
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	return string(name), nil
}

// openBeneath opens a directory below root without following symlinks.
func openBeneath(root *os.File, path string) (*os.File, error) {
	fd, err := unix.Openat2(int(root.Fd()), filepath.Clean(path), &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// each calls f for each subvolume nested directly in root, with the directory
// that holds it (open) and its name there.
func each(root *os.File, f func(path string, holder *os.File, name string) error) error {
	info, err := Info(root)
	if err != nil {
		return err
	}
	children, err := Children(root, info.ID)
	if err != nil {
		return err
	}
	for _, child := range children {
		path, err := lookup(root, info.ID, child.DirID)
		if err != nil {
			return err
		}
		holder, err := openBeneath(root, path)
		if err != nil {
			return err
		}
		err = f(path, holder, child.Name)
		_ = holder.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// Nested says whether subvolumes lie in a subvolume, as far as the caller may know.
func Nested(dir *os.File) (bool, error) {
	info, err := Info(dir)
	if err != nil {
		return false, err
	}
	children, err := Children(dir, info.ID)
	if errors.Is(err, unix.EPERM) {
		err = nil
	}
	return len(children) > 0, err
}

// SnapshotTree makes a snapshot of source with all that is nested in it.
func SnapshotTree(source, dir *os.File, name string, readOnly bool) error {
	nested, err := Nested(source)
	if err != nil {
		return err
	}
	if err := Snapshot(source, dir, name, readOnly && !nested); err != nil || !nested {
		return err
	}
	made, err := openBeneath(dir, name)
	if err != nil {
		return err
	}
	defer func() { _ = made.Close() }()
	err = each(source, func(path string, holder *os.File, child string) error {
		from, err := openBeneath(holder, child)
		if err != nil {
			return err
		}
		defer func() { _ = from.Close() }()
		to, err := openBeneath(made, path)
		if err != nil {
			return err
		}
		defer func() { _ = to.Close() }()
		// The snapshot holds an empty directory where the nested subvolume was.
		if err := unix.Unlinkat(int(to.Fd()), child, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "rmdir", Path: child, Err: err}
		}
		return SnapshotTree(from, to, child, readOnly)
	})
	if err == nil && readOnly {
		err = SetReadOnly(made, true)
	}
	return err
}

// DestroyTree removes the subvolume name of dir with all that is nested in it,
// read-only ones too.
func DestroyTree(dir *os.File, name string) error {
	root, err := openBeneath(dir, name)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	if !IsSubvolume(root) {
		return &os.PathError{Op: "destroy subvolume", Path: name, Err: unix.ENOTTY}
	}
	if err := SetReadOnly(root, false); err != nil {
		return err
	}
	info, _ := Info(root)
	groups, _ := ownGroups(root, info.ID)
	err = each(root, func(_ string, holder *os.File, child string) error { return DestroyTree(holder, child) })
	if err != nil {
		return err
	}
	if err := destroyOne(dir, name); err != nil {
		return err
	}
	// The quota groups of a subvolume outlive it; nobody misses them when quota is off.
	for _, group := range groups {
		_ = qgroup(dir, false, group)
	}
	return nil
}
