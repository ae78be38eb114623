// Package dm makes block devices with the kernel's device mapper
// (Documentation/admin-guide/device-mapper of the kernel), by its ioctls.
//
// It knows nothing of what a target does with its parameters.
package dm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrMissing says that the kernel has no device mapper.
var ErrMissing = errors.New("this kernel has no device mapper")

// ErrTarget says that the kernel refused a table: the device mapper's ioctl says
// only EINVAL, the kernel's log has the reason.
var ErrTarget = errors.New("the kernel's device mapper refuses the table")

// Requests and flags of linux/dm-ioctl.h.
const (
	create  = 3
	remove  = 4
	suspend = 6
	load    = 9

	flagReadOnly       = 1 << 0
	flagSecureData     = 1 << 15
	flagDeferredRemove = 1 << 17

	headerSize = 312 // struct dm_ioctl
	specSize   = 40  // struct dm_target_spec
	nameSize   = 128
	uuidSize   = 129
)

// Spec says what device to make, of one target from the first sector on.
type Spec struct {
	Name, UUID string
	Target     string // verity, crypt, …
	Sectors    uint64 // size, of 512 bytes each
	Params     string
	ReadOnly   bool
	// Secret has the kernel wipe its copy of the parameters.
	Secret bool
}

// Device is a device that goes away by itself when neither File nor a mount has it
// open any more, even if this process is killed.
type Device struct {
	File *os.File
	Path string
}

// Close lets go of the device; a mount of it stays.
func (d *Device) Close() error { return d.File.Close() }

// control is the open control device.
type control struct{ f *os.File }

const (
	controlDir  = "/dev/mapper"
	controlPath = controlDir + "/control"
	controlDev  = 236 // minor number of the misc device
)

// open opens the control device, which loads the kernel's module where that is not
// there yet, and makes its node where nothing else does.
func open() (control, error) {
	f, err := os.OpenFile(controlPath, os.O_RDWR, 0)
	if err == nil {
		return control{f}, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return control{}, missing(err)
	}
	madeDir := os.Mkdir(controlDir, 0o755) == nil
	const misc = 10
	if err := unix.Mknod(controlPath, unix.S_IFCHR|0o600, int(unix.Mkdev(misc, controlDev))); err != nil && !errors.Is(err, unix.EEXIST) {
		if madeDir {
			_ = os.Remove(controlDir)
		}
		return control{}, &os.PathError{Op: "mknod", Path: controlPath, Err: err}
	}
	f, err = os.OpenFile(controlPath, os.O_RDWR, 0)
	if err != nil {
		_ = os.Remove(controlPath)
		if madeDir {
			_ = os.Remove(controlDir)
		}
		return control{}, missing(err)
	}
	return control{f}, nil
}

// missing tells what opening a node without a driver says.
func missing(err error) error {
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return ErrMissing
	}
	return err
}

// Available returns ErrMissing, or another error, where no device can be made.
func Available() error {
	c, err := open()
	if err != nil {
		return err
	}
	return c.f.Close()
}

// Create makes a device. Its name must be new, or the error is EBUSY.
func Create(s Spec) (*Device, error) {
	if len(s.Name) >= nameSize || len(s.UUID) >= uuidSize || len(s.Target) >= 16 || strings.ContainsRune(s.Params, 0) {
		return nil, fmt.Errorf("make device %.40q: %w", s.Name, unix.EINVAL)
	}
	c, err := open()
	if err != nil {
		return nil, err
	}
	defer c.f.Close()
	reply, err := c.call(create, 0, s, false)
	if errors.Is(err, unix.ENOTTY) {
		return nil, ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("make device %q: %w", s.Name, err)
	}
	dev, err := c.start(s, binary.NativeEndian.Uint64(reply[40:]))
	if err != nil {
		_, _ = c.call(remove, flagDeferredRemove, Spec{Name: s.Name}, false)
		return nil, err
	}
	return dev, nil
}

// start gives a new device its table. From the moment that the device is open it
// goes away with this process.
func (c control) start(s Spec, number uint64) (*Device, error) {
	var flags uint32
	if s.ReadOnly {
		flags |= flagReadOnly
	}
	if s.Secret {
		flags |= flagSecureData
	}
	s.UUID = "" // it is called by its name from here on
	if _, err := c.call(load, flags, s, true); err != nil {
		if errors.Is(err, unix.EINVAL) {
			err = ErrTarget
		}
		return nil, fmt.Errorf("load the %s table of device %q: %w", s.Target, s.Name, err)
	}
	f, err := openNode(number, s.ReadOnly)
	if err != nil {
		return nil, err
	}
	name := Spec{Name: s.Name}
	if _, err := c.call(remove, flagDeferredRemove, name, false); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("have device %q removed at the end: %w", s.Name, err)
	}
	if _, err := c.call(suspend, flags&flagReadOnly, name, false); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("start device %q: %w", s.Name, err)
	}
	return &Device{File: f, Path: f.Name()}, nil
}

// openNode opens the node of a device, and makes it where nothing else does. The
// number is in the kernel's encoding, which is makedev(3)'s for all of the device mapper's.
func openNode(number uint64, readOnly bool) (*os.File, error) {
	path := "/dev/dm-" + strconv.FormatUint(uint64(unix.Minor(number)), 10)
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(path, mode, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(number)); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, &os.PathError{Op: "mknod", Path: path, Err: err}
		}
		f, err = os.OpenFile(path, mode, 0)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || uint64(st.Rdev) != number {
		_ = f.Close()
		return nil, fmt.Errorf("%s is not device %d:%d", path, unix.Major(number), unix.Minor(number))
	}
	return f, nil
}

// message is a request as the kernel reads it.
func message(flags uint32, s Spec, table bool) []byte {
	size := headerSize
	if table {
		size += specSize + len(s.Params) + 1
		size += -size & 7
	}
	b := make([]byte, max(size, 1024)) // the reply needs room too
	ne := binary.NativeEndian
	ne.PutUint32(b, 4) // version of the interface
	ne.PutUint32(b[12:], uint32(len(b)))
	ne.PutUint32(b[16:], headerSize)
	ne.PutUint32(b[28:], flags)
	copy(b[48:48+nameSize-1], s.Name)
	copy(b[48+nameSize:48+nameSize+uuidSize-1], s.UUID)
	if table {
		ne.PutUint32(b[20:], 1)
		spec := b[headerSize:]
		ne.PutUint64(spec[8:], s.Sectors)
		copy(spec[24:specSize-1], s.Target)
		copy(spec[specSize:], s.Params)
	}
	return b
}

// call makes one request. The reply has struct dm_ioctl's layout.
func (c control) call(request uintptr, flags uint32, s Spec, table bool) ([]byte, error) {
	b := message(flags, s, table)
	if s.Secret {
		defer clear(b)
	}
	// _IOWR is the same bits on all architectures.
	const readWrite, group = 3 << 30, 0xfd << 8
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, c.f.Fd(), readWrite|headerSize<<16|group|request, uintptr(unsafe.Pointer(&b[0])))
	if errno != 0 {
		return nil, errno
	}
	return append([]byte(nil), b[:headerSize]...), nil
}
