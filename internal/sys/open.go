package sys

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// OpenRootOf opens the root directory of the pinned process as an O_PATH
// descriptor, through /proc/PID/root. Paths opened beneath it with OpenIn are
// seen as that process sees them, mounts included. The caller closes it.
func OpenRootOf(p *Process) (*os.File, error) {
	path := "/proc/" + strconv.Itoa(p.pid) + "/root"
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			err = unix.ESRCH
		}
		return nil, fmt.Errorf("open root of process %d: %w", p.pid, err)
	}
	file := os.NewFile(uintptr(fd), path)
	if !p.Alive() {
		_ = file.Close()
		return nil, fmt.Errorf("open root of process %d: %w", p.pid, unix.ESRCH)
	}
	return file, nil
}

// OpenIn opens path as if root were "/": absolute and ".." symlinks stay inside,
// and the magic links of /proc are refused (openat2(2): RESOLVE_IN_ROOT,
// RESOLVE_NO_MAGICLINKS). O_CLOEXEC is added. The caller closes the file.
func OpenIn(root int, path string, flags int) (*os.File, error) {
	return OpenHow(root, path, &unix.OpenHow{Flags: uint64(flags)})
}

// CreateIn is OpenIn for a file that may have to be made with mode.
func CreateIn(root int, path string, flags int, mode uint32) (*os.File, error) {
	return OpenHow(root, path, &unix.OpenHow{Flags: uint64(flags | unix.O_CREAT), Mode: uint64(mode)})
}

// OpenHow is openat2 with the resolve flags of OpenIn added to those of how.
func OpenHow(root int, path string, how *unix.OpenHow) (*os.File, error) {
	h := *how
	h.Flags |= unix.O_CLOEXEC
	h.Resolve |= unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	if path == "" {
		path = "."
	}
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(root, path, &h)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN) && tries < 128:
			// A rename or mount somewhere on the system raced with "..": openat2(2).
			continue
		}
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
}

// Reopen opens the object behind an O_PATH descriptor with real flags.
func Reopen(f *os.File, flags int) (*os.File, error) {
	fd, err := unix.Open(FDPath(f), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "reopen", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// FDPath is the name of an open file in /proc, for calls that take paths only.
func FDPath(f *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
}
