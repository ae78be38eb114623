// Package loopdev makes a range of a file a block device (loop(4)).
//
// It reads no partition table and mounts nothing.
package loopdev

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const major = 7

// attempts bounds the race for a free device with everybody else on the host.
const attempts = 256

// Device is an attached device. It goes away by itself when neither File nor a
// mount has it open any more.
type Device struct {
	File *os.File
	Path string
}

// Close lets go of the device; a mount of it stays.
func (d *Device) Close() error { return d.File.Close() }

// Attach makes size bytes of f, from offset on, a block device; size 0 is up to
// the end. F stays the caller's and may be closed.
func Attach(f *os.File, offset, size int64, readOnly bool) (*Device, error) {
	if offset < 0 || size < 0 {
		return nil, fmt.Errorf("attach %q: negative offset or size", f.Name())
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach %q: %w", f.Name(), err)
	}
	defer control.Close()
	cfg := unix.LoopConfig{Fd: uint32(f.Fd())}
	cfg.Info.Offset, cfg.Info.Sizelimit = uint64(offset), uint64(size)
	cfg.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	mode := os.O_RDWR
	if readOnly {
		cfg.Info.Flags |= unix.LO_FLAGS_READ_ONLY
		mode = os.O_RDONLY
	}
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], f.Name())
	for range attempts {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("attach %q: %w", f.Name(), os.NewSyscallError("LOOP_CTL_GET_FREE", err))
		}
		path := "/dev/loop" + strconv.Itoa(n)
		dev, err := open(path, n, mode)
		if errors.Is(err, unix.ENXIO) {
			continue // removed in between
		}
		if err != nil {
			return nil, fmt.Errorf("attach %q: %w", f.Name(), err)
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &cfg)
		if err == nil {
			return &Device{File: dev, Path: path}, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.EAGAIN) {
			return nil, fmt.Errorf("attach %q to %s: %w", f.Name(), path, os.NewSyscallError("LOOP_CONFIGURE", err))
		}
	}
	return nil, fmt.Errorf("attach %q: no free loop device: %w", f.Name(), unix.EBUSY)
}

// open opens the node of a device and makes it where nothing else (udev) does.
func open(path string, n, mode int) (*os.File, error) {
	dev, err := os.OpenFile(path, mode, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err := unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(major, uint32(n)))); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, &os.PathError{Op: "mknod", Path: path, Err: err}
		}
		dev, err = os.OpenFile(path, mode, 0)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dev.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || uint64(st.Rdev) != unix.Mkdev(major, uint32(n)) {
		dev.Close()
		return nil, fmt.Errorf("%s is not loop device %d", path, n)
	}
	return dev, nil
}
