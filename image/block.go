package image

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blockSize returns the size of a block device in bytes.
func blockSize(dev *os.File) (uint64, error) {
	var size uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); errno != 0 {
		return 0, os.NewSyscallError("ioctl BLKGETSIZE64", errno)
	}
	return size, nil
}

// setBlockReadOnly sets or clears the read-only mark of a block device.
func setBlockReadOnly(dev *os.File, readOnly bool) error {
	value := int32(0)
	if readOnly {
		value = 1
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), unix.BLKROSET, uintptr(unsafe.Pointer(&value))); errno != 0 {
		return os.NewSyscallError("ioctl BLKROSET", errno)
	}
	return nil
}
