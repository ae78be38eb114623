package nsexec

import (
	"context"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// ErrTooManyPTYs means that a user has as many terminals open as one may have.
var ErrTooManyPTYs = fmt.Errorf("too many terminals are open: %w", unix.ENOBUFS)

// PTYs counts the terminals that users have got from here, until they are
// closed: the kernel has a few thousand for everybody. Root's are not counted.
// A terminal that is open costs no descriptor of ours. Safe for concurrent use.
type PTYs struct {
	max int

	mu    sync.Mutex
	open  map[uint32]int // by user
	watch *sys.FileWatcher
}

// NewPTYs lets each user have max terminals.
func NewPTYs(max int) *PTYs { return &PTYs{max: max, open: map[uint32]int{}} }

// Open opens a terminal for a user, or returns ErrTooManyPTYs.
func (t *PTYs) Open(ctx context.Context, uid uint32, open func(context.Context) (*PTY, error)) (*PTY, error) {
	if uid == 0 {
		return open(ctx)
	}
	if !t.enter(uid) {
		return nil, fmt.Errorf("open terminal for user %d: %w", uid, ErrTooManyPTYs)
	}
	leave := sync.OnceFunc(func() { t.leave(uid) })
	pty, err := open(ctx)
	if err != nil {
		leave()
		return nil, err
	}
	if err := t.whenClosed(pty, leave); err != nil {
		leave()
		pty.Close()
		return nil, err
	}
	return pty, nil
}

func (t *PTYs) enter(uid uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open[uid] >= t.max {
		return false
	}
	t.open[uid]++
	return true
}

func (t *PTYs) leave(uid uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open[uid]--; t.open[uid] <= 0 {
		delete(t.open, uid)
	}
}

// whenClosed calls f when the last descriptor of the master is closed: the node
// of the other end goes away then. O_PATH names it without opening it, of which
// the reader of the master would see the end.
func (t *PTYs) whenClosed(pty *PTY, f func()) error {
	watch, err := t.watcher()
	if err != nil {
		return err
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, pty.Master.Fd(), unix.TIOCGPTPEER, unix.O_PATH|unix.O_CLOEXEC)
	if errno != 0 {
		return fmt.Errorf("find peer of %s: %w", pty.Path, errno)
	}
	node := os.NewFile(fd, pty.Path)
	defer node.Close()
	_, err = watch.Add(sys.FDPath(node), unix.IN_DELETE_SELF, f)
	return err
}

func (t *PTYs) watcher() (*sys.FileWatcher, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.watch != nil {
		return t.watch, nil
	}
	var err error
	t.watch, err = sys.NewFileWatcher()
	return t.watch, err
}
