package varlink

import (
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// Peer is the process at the other end of a connection, as the kernel noted it
// when it connected (unix(7): SO_PEERCRED, SO_PEERPIDFD).
type Peer struct {
	UID uint32
	GID uint32
	PID int // as our PID namespace sees it, 0: not visible from here

	conn *net.UnixConn
	mu   sync.Mutex
	proc *sys.Process
	done bool
}

func newPeer(conn *net.UnixConn) (*Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var serr error
	if err := raw.Control(func(fd uintptr) {
		cred, serr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	if serr != nil {
		return nil, os.NewSyscallError("getsockopt", serr)
	}
	return &Peer{UID: cred.Uid, GID: cred.Gid, PID: int(cred.Pid), conn: conn}, nil
}

// Process returns the pinned process. It fails where the kernel has no
// SO_PEERPIDFD (before Linux 6.5), and when the process has ended. The peer
// keeps the process; don't close it.
func (p *Peer) Process() (*sys.Process, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proc != nil {
		return p.proc, nil
	}
	if p.done {
		return nil, fmt.Errorf("pin peer: %w", net.ErrClosed)
	}
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("pin peer: %w", err)
	}
	fd, serr := -1, error(nil)
	if err := raw.Control(func(s uintptr) {
		fd, serr = unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	}); err != nil {
		return nil, fmt.Errorf("pin peer: %w", err)
	}
	if serr != nil {
		return nil, fmt.Errorf("pin peer: %w", os.NewSyscallError("getsockopt", serr))
	}
	defer unix.Close(fd)
	proc, err := sys.FromPIDFD(fd)
	if err != nil {
		return nil, fmt.Errorf("pin peer: %w", err)
	}
	p.proc = proc
	return proc, nil
}

func (p *Peer) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = true
	if p.proc != nil {
		p.proc.Close()
		p.proc = nil
	}
}
