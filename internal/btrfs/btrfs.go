// Package btrfs owns the btrfs ioctls that images need: subvolumes, snapshots
// and quota groups (linux/btrfs.h, linux/btrfs_tree.h). It never walks a tree of
// files and decides nothing about images.
package btrfs

import (
	"encoding/binary"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	superMagic = 0x9123683e
	// rootInode is the inode number of each subvolume's root directory.
	rootInode = 256

	iocSnapDestroy     = 0x5000940f
	iocSubvolCreateV2  = 0x50009418
	iocSnapCreateV2    = 0x50009417
	iocSubvolGetFlags  = 0x80089419
	iocSubvolSetFlags  = 0x4008941a
	iocQuotaCtl        = 0xc0109428
	iocQgroupAssign    = 0x40189429
	iocQgroupCreate    = 0x4010942a
	iocQgroupLimit     = 0x8030942b
	iocQuotaRescan     = 0x4040942c
	iocQuotaRescanWait = 0x942e
	iocTreeSearch      = 0xd0009411
	iocGetSubvolInfo   = 0x81f8943c
	iocDefragDefault   = 0x50009402

	subvolReadOnly = 1 << 1 // BTRFS_SUBVOL_RDONLY
	nameMaxV2      = 4039   // BTRFS_SUBVOL_NAME_MAX
	pathNameMax    = 4087   // BTRFS_PATH_NAME_MAX
)

// volArgs is struct btrfs_ioctl_vol_args.
type volArgs struct {
	fd   int64
	name [pathNameMax + 1]byte
}

// volArgsV2 is struct btrfs_ioctl_vol_args_v2.
type volArgsV2 struct {
	fd      int64
	transid uint64
	flags   uint64
	unused  [4]uint64
	name    [nameMaxV2 + 1]byte
}

func ioctl(f *os.File, name string, request uintptr, arg unsafe.Pointer) error {
	_, err := ioctlValue(f, name, request, arg)
	return err
}

// ioctlValue is ioctl where success has a value.
func ioctlValue(f *os.File, name string, request uintptr, arg unsafe.Pointer) (uintptr, error) {
	for {
		value, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg))
		switch errno {
		case 0:
			return value, nil
		case unix.EINTR:
			continue
		}
		return 0, os.NewSyscallError("ioctl "+name, errno)
	}
}

// IsBtrfs says whether an open file lies on btrfs.
func IsBtrfs(f *os.File) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &st) == nil && st.Type == superMagic
}

// IsSubvolume says whether an open directory is the root of a subvolume.
func IsSubvolume(dir *os.File) bool {
	var st unix.Stat_t
	if unix.Fstat(int(dir.Fd()), &st) != nil {
		return false
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Ino == rootInode && IsBtrfs(dir)
}

// Subvolume describes a subvolume.
type Subvolume struct {
	ID       uint64
	ReadOnly bool
	Created  time.Time
}

// Info describes the subvolume that an open directory lies in.
func Info(dir *os.File) (Subvolume, error) {
	var raw [504]byte // struct btrfs_ioctl_get_subvol_info_args
	if err := ioctl(dir, "BTRFS_IOC_GET_SUBVOL_INFO", iocGetSubvolInfo, unsafe.Pointer(&raw)); err != nil {
		return Subvolume{}, err
	}
	const (
		nameEnd  = 8 + 256             // treeid, name
		flagsOff = nameEnd + 8 + 8 + 8 // parent_id, dirid, generation
		timesOff = flagsOff + 8 + 3*16 // flags, uuids
		otimeOff = timesOff + 4*8 + 16 // ctransid, otransid, stransid, rtransid, ctime
		readOnly = uint64(1)           // BTRFS_ROOT_SUBVOL_RDONLY
	)
	le := binary.LittleEndian
	info := Subvolume{ID: le.Uint64(raw[:]), ReadOnly: le.Uint64(raw[flagsOff:])&readOnly != 0}
	if sec := le.Uint64(raw[otimeOff:]); sec != 0 {
		info.Created = time.Unix(int64(sec), int64(le.Uint32(raw[otimeOff+8:])))
	}
	return info, nil
}

// SetReadOnly marks a subvolume read-only or writable.
func SetReadOnly(dir *os.File, readOnly bool) error {
	var flags uint64
	if err := ioctl(dir, "BTRFS_IOC_SUBVOL_GETFLAGS", iocSubvolGetFlags, unsafe.Pointer(&flags)); err != nil {
		return err
	}
	want := flags &^ subvolReadOnly
	if readOnly {
		want |= subvolReadOnly
	}
	if want == flags {
		return nil
	}
	return ioctl(dir, "BTRFS_IOC_SUBVOL_SETFLAGS", iocSubvolSetFlags, unsafe.Pointer(&want))
}

// Create makes an empty subvolume called name in dir.
func Create(dir *os.File, name string) error {
	var args volArgsV2
	if err := putName(args.name[:], name); err != nil {
		return err
	}
	return ioctl(dir, "BTRFS_IOC_SUBVOL_CREATE_V2", iocSubvolCreateV2, unsafe.Pointer(&args))
}

// Snapshot makes a snapshot of the one subvolume source called name in dir.
// Subvolumes nested in source become empty directories.
func Snapshot(source, dir *os.File, name string, readOnly bool) error {
	args := volArgsV2{fd: int64(source.Fd())}
	if readOnly {
		args.flags = subvolReadOnly
	}
	if err := putName(args.name[:], name); err != nil {
		return err
	}
	return ioctl(dir, "BTRFS_IOC_SNAP_CREATE_V2", iocSnapCreateV2, unsafe.Pointer(&args))
}

// destroyOne removes the subvolume name of dir, which must have none nested in it.
func destroyOne(dir *os.File, name string) error {
	var args volArgs
	if err := putName(args.name[:], name); err != nil {
		return err
	}
	return ioctl(dir, "BTRFS_IOC_SNAP_DESTROY", iocSnapDestroy, unsafe.Pointer(&args))
}

func putName(to []byte, name string) error {
	if name == "" || len(name) > 255 {
		return &os.PathError{Op: "name subvolume", Path: name, Err: unix.ENAMETOOLONG}
	}
	copy(to, name)
	return nil
}

// Defragment asks for a file to be rewritten in large extents.
func Defragment(f *os.File) error {
	return ioctl(f, "BTRFS_IOC_DEFRAG", iocDefragDefault, nil)
}
