package stage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// deviceMount mounts a block device, detached. Device nodes in it are of no effect.
func deviceMount(device, fstype string, readOnly bool, opts ...option) (int, error) {
	attrs := unix.MOUNT_ATTR_NODEV
	if readOnly {
		attrs |= unix.MOUNT_ATTR_RDONLY
		opts = append(opts, option{"ro", ""})
		// A journal that isn't empty would be written to all the same.
		switch fstype {
		case "ext4", "ext3":
			opts = append(opts, option{"noload", ""})
		case "xfs":
			opts = append(opts, option{"norecovery", ""})
		}
	}
	m, err := newFS(fstype, device, attrs, opts...)
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", device, err)
	}
	return m, nil
}

// usrPartition mounts /usr of a disk image already, where what is done with the
// root needs it, and returns the partitions that are still to be mounted.
func (o *outer) usrPartition() ([]Partition, error) {
	r := &o.plan.Root
	rest := slices.Clone(r.Extra)
	if !r.Memory && r.Volatile != "yes" && r.PivotNew == "" {
		return rest, nil
	}
	for i, p := range rest {
		if p.Designator == "usr" {
			return slices.Delete(rest, i, i+1), o.partition(p)
		}
	}
	return rest, nil
}

// partition mounts one of the image's other partitions where it belongs. What is
// only for boot loaders may stay away when the kernel can't read it.
func (o *outer) partition(p Partition) error {
	r := &o.plan.Root
	forLoader := p.Designator == "esp" || p.Designator == "xbootldr"
	if within(p.Dest, "/var") && (r.Volatile == "yes" || r.Volatile == "state") {
		return nil // it shall be empty
	}
	if p.Designator == "esp" {
		var ok bool
		if p.Dest, ok = o.espPlace(); !ok {
			return nil
		}
	}
	var opts []option
	if p.FSType == "vfat" {
		id := strconv.FormatUint(uint64(o.base), 10)
		opts = []option{{"uid", id}, {"gid", id}, {"umask", "0077"}}
	}
	m, err := deviceMount(p.Device, p.FSType, p.ReadOnly || r.ReadOnly, opts...)
	if errors.Is(err, unix.ENODEV) && forLoader {
		o.warn("Not mounting %s: %v", p.Dest, err)
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(m) }()
	if p.Grow {
		o.grow(m, p.Device, p.FSType)
	}
	if forLoader {
		if err := setAttr(m, false, unix.MountAttr{Attr_set: nosuid | nodev | noexec | unix.MOUNT_ATTR_NOSYMFOLLOW}); err != nil {
			return err
		}
	}
	if o.shifted && p.FSType != "vfat" {
		if m, err = o.shiftPartition(m); err != nil {
			return err
		}
	}
	o.asMachineRoot()
	target, err := o.root.dir(p.Dest, 0o755)
	o.asHost()
	if err != nil {
		return err
	}
	defer unix.Close(target)
	if err := attach(m, target); err != nil {
		return fmt.Errorf("mount %s: %w", p.Dest, err)
	}
	if r.Overlay == "" || r.ReadOnly || p.FSType == "vfat" {
		return nil
	}
	if err := o.partitionOverlay(p); err != nil {
		return fmt.Errorf("make %s ephemeral: %w", p.Dest, err)
	}
	return nil
}

// shiftPartition is shiftOwnership for a file system that is not the root's.
func (o *outer) shiftPartition(m int) (int, error) {
	memory := o.plan.Root.Memory
	o.plan.Root.Memory = false
	defer func() { o.plan.Root.Memory = memory }()
	return o.shiftOwnership(m)
}

// espPlace is where the EFI system partition is mounted: /efi if that is there, else
// /boot if that is there, empty and has no partition of its own.
func (o *outer) espPlace() (string, bool) {
	if o.root.exists("/efi") {
		return "/efi", true
	}
	if slices.ContainsFunc(o.plan.Root.Extra, func(p Partition) bool { return p.Designator == "xbootldr" }) {
		return "", false
	}
	fd, err := o.root.open("/boot", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", false
	}
	dir := os.NewFile(uintptr(fd), "/boot")
	defer dir.Close()
	names, err := dir.Readdirnames(1)
	return "/boot", len(names) == 0 && err != nil
}

// Requests of ioctl(2) that grow a mounted file system: ext4's takes a number of
// blocks, btrfs' a name and size, xfs' a number of blocks and a share of inodes.
const (
	ext4Resize  = 8<<16 | 'f'<<8 | 16
	btrfsResize = 4096<<16 | 0x94<<8 | 3
	xfsGrow     = 16<<16 | 'X'<<8 | 110
	xfsGeometry = 112<<16 | 'X'<<8 | 100
)

// ioctlDirection is what _IOW and _IOR put into a request: it differs by architecture.
func ioctlDirection(read bool) uintptr {
	write, readBit, shift := uintptr(1), uintptr(2), 30
	switch runtime.GOARCH {
	case "mips", "mipsle", "mips64", "mips64le", "ppc64", "ppc64le":
		write, shift = 4, 29
	}
	if read {
		return readBit << shift
	}
	return write << shift
}

// grow makes a mounted file system as large as its device. One that can't is left
// as it is: the machine can work with it.
func (o *outer) grow(m int, device, fstype string) {
	if err := growFS(m, device, fstype); err != nil {
		o.warn("Failed to grow the file system of %s, ignoring: %v", device, err)
	}
}

func growFS(m int, device, fstype string) error {
	f, err := os.OpenFile(procFD(m), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := deviceSize(device)
	if err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return os.NewSyscallError("fstatfs", err)
	}
	call := func(request uintptr, arg unsafe.Pointer) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
			return os.NewSyscallError("ioctl", errno)
		}
		return nil
	}
	switch fstype {
	case "ext4", "ext3":
		blocks := size / uint64(st.Bsize)
		return call(ioctlDirection(false)|ext4Resize, unsafe.Pointer(&blocks))
	case "btrfs":
		var args [4096]byte // struct btrfs_ioctl_vol_args: an fd, and the request as text
		copy(args[8:], strconv.FormatUint(size, 10))
		return call(ioctlDirection(false)|btrfsResize, unsafe.Pointer(&args))
	case "xfs":
		var geometry [112]byte // struct xfs_fsop_geom_v1: block size first, imaxpct at 28
		if err := call(ioctlDirection(true)|xfsGeometry, unsafe.Pointer(&geometry)); err != nil {
			return err
		}
		var grow [16]byte
		binary.NativeEndian.PutUint64(grow[:], size/uint64(binary.NativeEndian.Uint32(geometry[:])))
		copy(grow[8:12], geometry[28:32])
		return call(ioctlDirection(false)|xfsGrow, unsafe.Pointer(&grow))
	}
	return fmt.Errorf("%s can't grow: %w", fstype, errors.ErrUnsupported)
}

// deviceSize is the size of a block device in bytes.
func deviceSize(device string) (uint64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	return uint64(size), err
}

// partitionOverlay lets the changes to a partition go where those to the root go.
func (o *outer) partitionOverlay(p Partition) error {
	lower, err := o.root.open(p.Dest, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(lower)
	var st unix.Stat_t
	if err := unix.Fstat(lower, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	upper, err := openTree(o.plan.Root.Overlay)
	if err != nil {
		return err
	}
	defer upper.close()
	name := "/" + strings.ReplaceAll(strings.Trim(p.Dest, "/"), "/", "-")
	o.asMachineRoot()
	err = errors.Join(upper.mkdir(name+"-upper", st.Mode&0o7777), upper.mkdir(name+"-work", 0o755))
	o.asHost()
	if err != nil {
		return err
	}
	overlay, err := newFS("overlay", "overlay", 0,
		option{"lowerdir", procFD(lower)},
		option{"upperdir", o.plan.Root.Overlay + name + "-upper"},
		option{"workdir", o.plan.Root.Overlay + name + "-work"})
	if err != nil {
		return err
	}
	defer unix.Close(overlay)
	target, err := o.root.open(p.Dest, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return attach(overlay, target)
}
