package nsexec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// Bind says what to mount where. Both paths are absolute and normalized.
type Bind struct {
	Source      string // on the host
	Destination string // in the machine
	ReadOnly    bool
	Mkdir       bool // make the destination and its parents where missing
}

// ErrSharedMounts means that the machine has no mount namespace of its own.
var ErrSharedMounts = errors.New("machine has no mount namespace of its own")

// Mount binds a host directory or file into the running machine whose leader is
// p, and returns the ID of the new mount (statx(2), stx_mnt_id). Where the
// machine has a user namespace of its own and the file system can do it, the
// mount is mapped through it, so that owners look the same inside as outside.
func Mount(ctx context.Context, p *sys.Process, b Bind) (mountID uint64, err error) {
	same, err := sys.SameNamespace(0, p.PID(), "mnt")
	if err != nil {
		return 0, err
	}
	if same {
		return 0, ErrSharedMounts
	}
	return within(ctx, p, func(ctx context.Context, p *sys.Process) (uint64, error) {
		tree, isDir, err := cloneTree(p, b)
		if err != nil {
			return 0, err
		}
		defer tree.Close()
		err = inMountNamespace(p, func(root int) error {
			target, err := openTarget(root, b.Destination, isDir, b.Mkdir)
			if err != nil {
				return err
			}
			defer target.Close()
			if err := sameKind(target, isDir); err != nil {
				return fmt.Errorf("bind to %q: %w", b.Destination, err)
			}
			if err := ctx.Err(); err != nil {
				return err // the caller has been told that nothing is mounted
			}
			err = unix.MoveMount(int(tree.Fd()), "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
			if err != nil {
				return fmt.Errorf("bind to %q: %w", b.Destination, os.NewSyscallError("move_mount", err))
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
		return mountIDOf(int(tree.Fd()))
	}, nil)
}

// sameKind tells whether target can be covered: by a directory if it is one,
// else by a file.
func sameKind(target *os.File, isDir bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(target.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	switch targetDir := st.Mode&unix.S_IFMT == unix.S_IFDIR; {
	case isDir && !targetDir:
		return unix.ENOTDIR
	case !isDir && targetDir:
		return unix.EISDIR
	}
	return nil
}

// mountIDOf returns the ID of the mount that fd is on.
func mountIDOf(fd int) (uint64, error) {
	var stx unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &stx); err != nil {
		return 0, os.NewSyscallError("statx", err)
	}
	return stx.Mnt_id, nil
}

// cloneTree makes the detached mount.
func cloneTree(p *sys.Process, b Bind) (tree *os.File, isDir bool, err error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, b.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, false, fmt.Errorf("clone tree at %q: %w", b.Source, os.NewSyscallError("open_tree", err))
	}
	tree = os.NewFile(uintptr(fd), b.Source)
	defer func() {
		if err != nil {
			_ = tree.Close()
			tree = nil
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return tree, false, fmt.Errorf("look at %q: %w", b.Source, err)
	}
	isDir = st.Mode&unix.S_IFMT == unix.S_IFDIR
	// Mounting is one way: what the machine mounts below must not reach us.
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if b.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return tree, isDir, fmt.Errorf("set attributes of mount of %q: %w", b.Source, os.NewSyscallError("mount_setattr", err))
	}
	same, err := sys.SameNamespace(0, p.PID(), "user")
	if err != nil || same {
		return tree, isDir, err
	}
	ns, err := sys.OpenNamespace(p, "user")
	if err != nil {
		return tree, isDir, err
	}
	defer ns.Close()
	idmap := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	// All mounts of the tree if all can, else the one on top if that can. Its
	// file system may not be able to (overlayfs, most network ones), or it may
	// be mapped already: its files then stay as they are, and root's show as
	// nobody's inside, as with a bind mount of the spawner's without idmap.
	for _, how := range []uint{unix.AT_EMPTY_PATH | unix.AT_RECURSIVE, unix.AT_EMPTY_PATH} {
		err = unix.MountSetattr(fd, "", how, &idmap)
		if err == nil || !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
			break
		}
	}
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
		return tree, isDir, fmt.Errorf("map owners of %q into the machine's user namespace: %w", b.Source, os.NewSyscallError("mount_setattr", err))
	}
	return tree, isDir, nil
}

// openTarget resolves where to mount, beneath root at every step, and makes
// what is missing if it may. Symlinks are the machine's, and lead nowhere else.
func openTarget(root int, destination string, isDir, mkdir bool) (*os.File, error) {
	target, err := sys.OpenIn(root, destination, unix.O_PATH)
	if err == nil || !mkdir || !errors.Is(err, unix.ENOENT) {
		return target, err
	}
	parent, err := makeParents(root, path.Dir(destination))
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	name := path.Base(destination)
	if isDir {
		err = unix.Mkdirat(int(parent.Fd()), name, 0o755)
	} else {
		err = unix.Mknodat(int(parent.Fd()), name, unix.S_IFREG|0o644, 0)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "make", Path: destination, Err: err}
	}
	return sys.OpenIn(root, destination, unix.O_PATH)
}

// makeParents opens directory dir beneath root and makes it and its parents
// where they are missing.
func makeParents(root int, dir string) (*os.File, error) {
	const how = unix.O_PATH | unix.O_DIRECTORY
	at, err := sys.OpenIn(root, "/", how)
	if err != nil {
		return nil, err
	}
	prefix := ""
	for name := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		if name == "" {
			continue
		}
		prefix += "/" + name
		next, err := sys.OpenIn(root, prefix, how)
		if errors.Is(err, unix.ENOENT) {
			if err = unix.Mkdirat(int(at.Fd()), name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
				_ = at.Close()
				return nil, &os.PathError{Op: "mkdir", Path: prefix, Err: err}
			}
			next, err = sys.OpenIn(root, prefix, how)
		}
		_ = at.Close()
		if err != nil {
			return nil, err
		}
		at = next
	}
	return at, nil
}

// ErrNoSuchBind means that nothing that was bound is mounted there any more.
var ErrNoSuchBind = errors.New("no such bind mount")

// Unmount detaches the mount with the ID mountID at destination. It is
// ErrNoSuchBind when another mount, or none, is there.
func Unmount(ctx context.Context, p *sys.Process, destination string, mountID uint64) error {
	_, err := within(ctx, p, func(_ context.Context, p *sys.Process) (struct{}, error) {
		return struct{}{}, inMountNamespace(p, func(root int) error { return unmount(root, destination, mountID) })
	}, nil)
	return err
}

func unmount(root int, destination string, mountID uint64) error {
	target, err := sys.OpenIn(root, destination, unix.O_PATH)
	if err != nil {
		return err
	}
	id, err := mountIDOf(int(target.Fd()))
	_ = target.Close()
	if err != nil {
		return err
	}
	if id != mountID {
		return fmt.Errorf("unmount %q: %w", destination, ErrNoSuchBind)
	}
	parent, err := sys.OpenIn(root, path.Dir(destination), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer parent.Close()
	// There is no umount by descriptor; a name relative to a directory that
	// is held comes nearest. The working directory is this thread's own.
	if err := unix.Fchdir(int(parent.Fd())); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	if err := unix.Unmount(path.Base(destination), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %q: %w", destination, os.NewSyscallError("umount2", err))
	}
	return nil
}
