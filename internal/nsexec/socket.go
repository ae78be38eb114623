package nsexec

import (
	"context"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// BusSocket is where a machine's system bus listens (dbus-daemon(1)).
const BusSocket = "/run/dbus/system_bus_socket"

// DialUnix connects to a listening socket at path inside the machine whose
// leader is p. The peer sees the machine's root as the caller, so that a bus in
// a user namespace accepts the connection.
func DialUnix(ctx context.Context, p *sys.Process, path string) (*net.UnixConn, error) {
	return within(ctx, p, func(_ context.Context, p *sys.Process) (*net.UnixConn, error) { return dialUnix(p, path) },
		func(c *net.UnixConn) { _ = c.Close() })
}

func dialUnix(p *sys.Process, path string) (*net.UnixConn, error) {
	uid, gid, err := rootIDs(p)
	if err != nil {
		return nil, err
	}
	root, err := sys.OpenRootOf(p)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	node, err := sys.OpenIn(int(root.Fd()), path, unix.O_PATH)
	if err != nil {
		return nil, fmt.Errorf("connect to socket of machine: %w", err)
	}
	defer node.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(node.Fd()), &st); err != nil {
		return nil, fmt.Errorf("connect to %q of machine: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, fmt.Errorf("connect to %q of machine: %w", path, unix.ENOTSOCK)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	err = sys.OnThread(func() error {
		if uid != 0 || gid != 0 {
			// Raw calls act on this thread alone; it ends right after.
			keep := uintptr(^uint32(0))
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, keep, uintptr(gid), keep); e != 0 {
				return os.NewSyscallError("setresgid", e)
			}
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); e != 0 {
				return os.NewSyscallError("setresuid", e)
			}
		}
		// A full backlog of a hostile listener gives EAGAIN on a socket that
		// does not block, and so can't hold this thread.
		return unix.Connect(fd, &unix.SockaddrUnix{Name: sys.FDPath(node)})
	})
	if err != nil {
		return nil, fmt.Errorf("connect to %q of machine: %w", path, err)
	}
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// OpenRootDirectory opens the root directory of the machine for reading.
func OpenRootDirectory(ctx context.Context, p *sys.Process) (*os.File, error) {
	return within(ctx, p, func(_ context.Context, p *sys.Process) (*os.File, error) {
		root, err := sys.OpenRootOf(p)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		return sys.Reopen(root, unix.O_RDONLY|unix.O_DIRECTORY)
	}, closeFile)
}

func closeFile(f *os.File) { _ = f.Close() }
