package nsexec

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// PTY is a new pseudo terminal of a machine.
type PTY struct {
	Master *os.File
	// Path of the other end as the machine sees it, /dev/pts/N.
	Path string
	// Number is N.
	Number int
}

// Close closes the master.
func (p *PTY) Close() { _ = p.Master.Close() }

// Peer opens the other end (TIOCGPTPEER of ioctl_tty(2)), without a path.
func (p *PTY) Peer() (*os.File, error) {
	// Without O_NOCTTY a daemon that leads its session would take the terminal
	// as its own, and die of the hangup when the master is closed.
	const how = unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, p.Master.Fd(), unix.TIOCGPTPEER, how)
	if errno != 0 {
		return nil, fmt.Errorf("open peer of %s: %w", p.Path, errno)
	}
	return os.NewFile(fd, p.Path), nil
}

// OpenHostPTY makes a pseudo terminal of the host.
func OpenHostPTY() (*PTY, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open pty: %w", err)
	}
	return newPTY(os.NewFile(uintptr(fd), "/dev/ptmx"))
}

// OpenPTY makes a pseudo terminal in the devpts instance of the machine whose
// leader is p, owned by the machine's root. The instance is found beneath the
// machine's root, and what is opened is known to be a multiplexer on devpts.
func OpenPTY(ctx context.Context, p *sys.Process) (*PTY, error) {
	return within(ctx, p, func(_ context.Context, p *sys.Process) (*PTY, error) { return openPTY(p) }, (*PTY).Close)
}

func openPTY(p *sys.Process) (*PTY, error) {
	root, err := sys.OpenRootOf(p)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	node, err := sys.OpenIn(int(root.Fd()), "/dev/pts/ptmx", unix.O_PATH)
	if err != nil {
		return nil, fmt.Errorf("open pty of machine: %w", err)
	}
	defer node.Close()
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := unix.Fstat(int(node.Fd()), &st); err != nil {
		return nil, fmt.Errorf("open pty of machine: %w", err)
	}
	if err := unix.Fstatfs(int(node.Fd()), &fs); err != nil {
		return nil, fmt.Errorf("open pty of machine: %w", err)
	}
	if fs.Type != unix.DEVPTS_SUPER_MAGIC || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(5, 2) {
		return nil, fmt.Errorf("open pty of machine: /dev/pts/ptmx is no terminal multiplexer: %w", unix.ENODEV)
	}
	master, err := sys.Reopen(node, unix.O_RDWR|unix.O_NOCTTY)
	if err != nil {
		return nil, fmt.Errorf("open pty of machine: %w", err)
	}
	pty, err := newPTY(master)
	if err != nil {
		return nil, err
	}
	if err := pty.give(p); err != nil {
		pty.Close()
		return nil, err
	}
	return pty, nil
}

// newPTY takes master over.
func newPTY(master *os.File) (*PTY, error) {
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		_ = master.Close()
		return nil, fmt.Errorf("unlock pty: %w", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		_ = master.Close()
		return nil, fmt.Errorf("get number of pty: %w", err)
	}
	return &PTY{Master: master, Path: fmt.Sprintf("/dev/pts/%d", n), Number: n}, nil
}

// give makes the machine's root the owner of the other end, whose node was made
// with our IDs: in a user namespace of its own nobody there could open it.
func (p *PTY) give(leader *sys.Process) error {
	uid, gid, err := rootIDs(leader)
	if err != nil {
		return err
	}
	if uid == 0 && gid == 0 {
		return nil
	}
	peer, err := p.Peer()
	if err != nil {
		return err
	}
	defer peer.Close()
	// The group is that of the mount's gid= option, if it has one.
	group := -1
	var st unix.Stat_t
	if err := unix.Fstat(int(peer.Fd()), &st); err == nil && st.Gid == 0 {
		group = int(gid)
	}
	if err := unix.Fchown(int(peer.Fd()), int(uid), group); err != nil {
		return fmt.Errorf("give %s to root of the machine: %w", p.Path, err)
	}
	return nil
}
