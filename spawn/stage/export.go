package stage

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrExported says that the place of a machine's exports is taken by one that runs.
var ErrExported = errors.New("exists already")

// Export is a small file system that a machine shows its sockets to the host in.
type Export struct {
	path string
	lock *os.File // on its root: locked for as long as the machine's supervisor lives
	tree int      // detached, writable; the machine's

	mounted bool
}

// NewExport mounts one on path of the host, where it can only be read, and keeps
// it writable for the machine, whose root (of the host's ID base) owns it. What a
// killed run has left there goes away. The error is ErrExported when another
// machine of the name runs.
func NewExport(path string, base uint32) (*Export, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, err
	}
	e := &Export{path: path, tree: -1}
	err := e.mount(base)
	switch {
	case err == nil:
		return e, nil
	case errors.Is(err, ErrExported): // the other's
	default:
		e.close()
	}
	return nil, err
}

func (e *Export) mount(base uint32) error {
	if err := DropStale(e.path); err != nil {
		return err
	}
	m, err := newFS("tmpfs", "tmpfs", nosuid|nodev|noexec|unix.MOUNT_ATTR_NOSYMFOLLOW, tmpfsOptions("0755", "4m", "64", base, true)...)
	if err != nil {
		return fmt.Errorf("mount %s: %w", e.path, err)
	}
	defer unix.Close(m)
	target, err := unix.Open(e.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: e.path, Err: err}
	}
	defer unix.Close(target)
	if err := attach(m, target); err != nil {
		return fmt.Errorf("mount %s: %w", e.path, err)
	}
	e.mounted = true
	if err := e.open(m); err != nil {
		return fmt.Errorf("mount %s: %w", e.path, err)
	}
	return nil
}

func (e *Export) open(m int) (err error) {
	fd, err := unix.Open(procFD(m), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	e.lock = os.NewFile(uintptr(fd), e.path)
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return os.NewSyscallError("flock", err)
	}
	if e.tree, err = cloneTree(fd, false); err != nil {
		return err
	}
	// What the machine mounts on it does not appear on the host.
	if err := setAttr(e.tree, false, unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return err
	}
	return setAttr(fd, false, unix.MountAttr{Attr_set: readonly})
}

// DropStale unmounts what lies on path, unless somebody has it locked: then a
// machine runs that shows its sockets there, and the error is ErrExported.
func DropStale(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, 0, &st); err != nil {
		return os.NewSyscallError("statx", err)
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return nil
	}
	if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil {
		return fmt.Errorf("Mount point '%s' %w, refusing.", path, ErrExported)
	}
	return Unmount(path)
}

// close takes back what has been made of it.
func (e *Export) close() {
	e.CloseTree()
	if e.mounted {
		_ = Unmount(e.path)
	}
	_ = os.Remove(e.path)
	if e.lock != nil {
		_ = e.lock.Close()
	}
}

// Lock is the lock on the mount. It is to be held until RemoveExport.
func (e *Export) Lock() *os.File { return e.lock }

// CloseTree lets go of what only the machine's start needs.
func (e *Export) CloseTree() {
	if e.tree >= 0 {
		_ = unix.Close(e.tree)
		e.tree = -1
	}
}

// RemoveExport takes the mount away.
func RemoveExport(path string) {
	_ = Unmount(path)
	_ = os.Remove(path)
}

// unixExport shows the machine's exports in it, where its root may write.
func (o *outer) unixExport() error {
	const inside = "/run/host/unix-export"
	o.asMachineRoot()
	target, err := o.root.dir(inside, 0o755)
	o.asHost()
	if err != nil {
		return err
	}
	defer unix.Close(target)
	if err := attach(o.io.Export.tree, target); err != nil {
		return fmt.Errorf("mount %s: %w", inside, err)
	}
	return nil
}
