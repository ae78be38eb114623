package varlink

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Listen binds a stream socket at path with exactly the mode. Missing parents
// are made (0755), a socket that a dead daemon left is replaced, anything else
// there is an error. The mode is in place before the first caller can connect.
// The path stays after Close: a later daemon's socket may be there by then.
func Listen(path string, mode fs.FileMode) (*net.UnixListener, error) {
	return ListenType(path, mode, unix.SOCK_STREAM)
}

// ListenType is Listen for another type of socket (socket(2)).
func ListenType(path string, mode fs.FileMode, kind int) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, err)
	}
	if err := removeStale(path, fs.ModeSocket); err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, os.NewSyscallError("socket", err))
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, os.NewSyscallError("bind", err))
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, err)
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, os.NewSyscallError("listen", err))
	}
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, err)
	}
	unixListener, ok := listener.(*net.UnixListener)
	if !ok {
		_ = listener.Close()
		return nil, fmt.Errorf("listen on %q: not a unix socket", path)
	}
	unixListener.SetUnlinkOnClose(false)
	return unixListener, nil
}

// Link makes link a symlink to target, atomically, over an earlier symlink or
// a dead socket. Missing parents are made.
func Link(target, link string) error {
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return fmt.Errorf("link socket %q: %w", link, err)
	}
	if err := removeStale(link, fs.ModeSocket|fs.ModeSymlink); err != nil {
		return fmt.Errorf("link socket %q: %w", link, err)
	}
	temp := filepath.Join(filepath.Dir(link), ".#"+filepath.Base(link)+strconv.Itoa(os.Getpid()))
	if err := os.Symlink(target, temp); err != nil {
		return fmt.Errorf("link socket %q: %w", link, err)
	}
	if err := os.Rename(temp, link); err != nil {
		_ = os.Remove(temp)
		return fmt.Errorf("link socket %q: %w", link, err)
	}
	return nil
}

func removeStale(path string, types fs.FileMode) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type()&types == 0 {
		return fmt.Errorf("%q is in the way and no socket: %w", path, fs.ErrExist)
	}
	return os.Remove(path)
}
