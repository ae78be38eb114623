package image

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"time"

	"machined/internal/btrfs"

	"golang.org/x/sys/unix"
)

// immutableFlag is FS_IMMUTABLE_FL of linux/fs.h.
const immutableFlag = 0x10

// inspect describes what lies at path without its name. It follows symlinks and
// returns ErrNoSuchImage for what cannot be an image.
func inspect(path string) (Image, error) {
	file, err := openNode(path)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return Image{}, ErrNoSuchImage
		}
		return Image{}, err
	}
	defer func() { _ = file.Close() }()
	fd := int(file.Fd())

	var stx unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &stx); err != nil {
		return Image{}, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	img := Image{Path: path, Usage: Unknown, Limit: Unknown, UsageExclusive: Unknown, LimitExclusive: Unknown}
	var fsys unix.Statfs_t
	if err := unix.Fstatfs(fd, &fsys); err == nil && fsys.Flags&unix.ST_RDONLY != 0 {
		img.ReadOnly = true
	}
	if stx.Mask&unix.STATX_BTIME != 0 && stx.Btime.Sec > 0 {
		img.Created = statxTime(stx.Btime)
	}
	switch stx.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		inspectDir(&img, file)
	case unix.S_IFREG:
		img.Type = TypeRaw
		if created, ok := createdBefore(path); ok && (img.Created.IsZero() || created.Before(img.Created)) {
			img.Created = created
		}
		img.Modified = statxTime(stx.Mtime)
		img.ReadOnly = img.ReadOnly || stx.Mode&0o222 == 0
		img.Usage, img.UsageExclusive = stx.Blocks*512, stx.Blocks*512
		img.Limit, img.LimitExclusive = stx.Size, stx.Size
	case unix.S_IFBLK:
		img.Type = TypeBlock
		img.Created = time.Time{} // of the node, says nothing about the device
		img.ReadOnly = stx.Mode&0o222 == 0
		inspectBlock(&img, path)
	default:
		return Image{}, ErrNoSuchImage
	}
	return img, nil
}

// openNode opens what lies at path as far as describing it needs: a file to
// read where that is allowed, else only as a path. A FIFO or a device is never
// opened for reading: that could block or act on the device.
func openNode(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	node := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = node.Close()
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return node, nil
	}
	dir, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return node, nil //nolint:nilerr // a directory that may not be read is still listed
	}
	_ = node.Close()
	return os.NewFile(uintptr(dir), path), nil
}

func inspectDir(img *Image, dir *os.File) {
	img.Type = TypeDirectory
	if strings.HasSuffix(img.Path, mstackSuffix) {
		img.Type = TypeMStack
		if _, err := os.Lstat(img.Path + "/rw"); err != nil {
			img.ReadOnly = true
		}
		return
	}
	if btrfs.IsSubvolume(dir) {
		img.Type = TypeSubvolume
		info, err := btrfs.Info(dir)
		if err == nil {
			img.ReadOnly = img.ReadOnly || info.ReadOnly
			img.Created = info.Created
		}
		if quota, err := btrfs.Quota(dir); err == nil {
			img.Usage, img.UsageExclusive = quota.Referenced, quota.Exclusive
			img.Limit, img.LimitExclusive = quota.ReferencedMax, quota.ExclusiveMax
		}
		return
	}
	if flags, err := unix.IoctlGetInt(int(dir.Fd()), unix.FS_IOC_GETFLAGS); err == nil && flags&immutableFlag != 0 {
		img.ReadOnly = true
	}
}

func inspectBlock(img *Image, path string) {
	dev, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	defer func() { _ = dev.Close() }()
	if ro, err := unix.IoctlGetInt(int(dev.Fd()), unix.BLKROGET); err == nil && ro != 0 {
		img.ReadOnly = true
	}
	if size, err := blockSize(dev); err == nil && size > 0 {
		img.Usage, img.UsageExclusive, img.Limit, img.LimitExclusive = size, size, size, size
	}
}

// createdAttribute holds when a disk image was made, in microseconds as a number
// of eight bytes, least significant first: a copy keeps the time of its original.
const createdAttribute = "user.crtime_usec"

func createdBefore(path string) (time.Time, bool) {
	var raw [8]byte
	n, err := unix.Getxattr(path, createdAttribute, raw[:])
	usec := binary.LittleEndian.Uint64(raw[:])
	if err != nil || n != len(raw) || usec == 0 || usec > 1<<62 {
		return time.Time{}, false
	}
	return time.UnixMicro(int64(usec)), true
}

func keepCreated(f *os.File, created time.Time) error {
	return unix.Fsetxattr(int(f.Fd()), createdAttribute, binary.LittleEndian.AppendUint64(nil, uint64(created.UnixMicro())), 0)
}

func statxTime(t unix.StatxTimestamp) time.Time {
	return time.Unix(t.Sec, int64(t.Nsec))
}

// birth is when the file at path itself was made, or otherwise where that is not
// known.
func birth(path string, otherwise time.Time) time.Time {
	var stx unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BTIME, &stx)
	if err != nil || stx.Mask&unix.STATX_BTIME == 0 || stx.Btime.Sec <= 0 {
		return otherwise
	}
	return statxTime(stx.Btime)
}
