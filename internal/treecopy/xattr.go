package treecopy

import (
	"bytes"
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// xattrMax is the largest extended attribute the kernel knows (XATTR_SIZE_MAX).
const xattrMax = 64 << 10

// copyXattrs copies extended attributes: user, security (capabilities), trusted
// and system (ACLs). Those the destination cannot hold are left out, as are
// labels that only a security module may set.
func copyXattrs(src, dst int, isLink bool) error {
	if isLink {
		// A symlink has no user attributes, and the /proc link cannot name it.
		return nil
	}
	from, to := procPath(src), procPath(dst)
	names := make([]byte, 1024)
	n, err := unix.Listxattr(from, names)
	for errors.Is(err, unix.ERANGE) && len(names) < xattrMax {
		names = make([]byte, len(names)*8)
		n, err = unix.Listxattr(from, names)
	}
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENXIO) {
			return nil
		}
		return os.NewSyscallError("listxattr", err)
	}
	if n == 0 {
		return nil
	}
	value := make([]byte, 256)
	for _, raw := range bytes.Split(names[:n], []byte{0}) {
		name := string(raw)
		if name == "" || name == "security.selinux" || bytes.HasPrefix(raw, []byte("btrfs.")) {
			continue
		}
		size, err := unix.Getxattr(from, name, value)
		if errors.Is(err, unix.ERANGE) {
			value = make([]byte, xattrMax)
			size, err = unix.Getxattr(from, name, value)
		}
		if err != nil {
			continue // gone meanwhile, or not readable
		}
		if err := unix.Setxattr(to, name, value[:size], 0); err != nil {
			if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
				continue
			}
			return os.NewSyscallError("setxattr "+name, err)
		}
	}
	return nil
}

// utimensEmpty sets the times of what an O_PATH descriptor names (utimensat(2)
// with AT_EMPTY_PATH; Linux 5.8).
func utimensEmpty(fd int, times []unix.Timespec) error {
	empty := [1]byte{}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), uintptr(unsafe.Pointer(&empty)),
		uintptr(unsafe.Pointer(&times[0])), unix.AT_EMPTY_PATH, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// futimens sets the times of an open file (utimensat(2) without a path).
func futimens(fd int, times []unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times[0])), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
