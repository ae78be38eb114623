package stage

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// tree is a directory that stands for "/"; paths are resolved beneath it and
// never leave it (openat2(2), RESOLVE_IN_ROOT).
type tree struct{ fd int }

func openTree(name string) (tree, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return tree{}, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return tree{fd}, nil
}

func (t tree) close() { _ = unix.Close(t.fd) }

// open resolves p with flags. The caller closes the descriptor.
func (t tree) open(p string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(mode)
	}
	if p == "" {
		p = "."
	}
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(t.fd, p, &how)
		if errors.Is(err, unix.EINTR) || (errors.Is(err, unix.EAGAIN) && tries < 128) {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: p, Err: err}
		}
		return fd, nil
	}
}

func (t tree) exists(p string) bool {
	fd, err := t.open(p, unix.O_PATH, 0)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// lexists is exists without following a final symlink.
func (t tree) lexists(p string) bool {
	fd, err := t.open(p, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// dir opens directory p as O_PATH and makes it, and its parents as 0755, when
// it is missing.
func (t tree) dir(p string, mode uint32) (int, error) {
	p = path.Clean("/" + p)
	fd, err := t.open(p, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil || !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	parent, err := t.dir(path.Dir(p), 0o755)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	if err := unix.Mkdirat(parent, path.Base(p), mode); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, &os.PathError{Op: "mkdir", Path: p, Err: err}
	}
	return t.open(p, unix.O_PATH|unix.O_DIRECTORY, 0)
}

func (t tree) mkdir(p string, mode uint32) error {
	fd, err := t.dir(p, mode)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

// node opens p as O_PATH; when it is missing it makes an empty file there.
func (t tree) node(p string) (int, error) {
	p = path.Clean("/" + p)
	fd, err := t.open(p, unix.O_PATH, 0)
	if err == nil || !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	parent, err := t.dir(path.Dir(p), 0o755)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	err = unix.Mknodat(parent, path.Base(p), unix.S_IFREG|0o644, 0)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, &os.PathError{Op: "create", Path: p, Err: err}
	}
	if fd, err = t.open(p, unix.O_PATH, 0); errors.Is(err, unix.ENOENT) {
		// A link that leads to nothing yet: what it names is made.
		made, err := t.open(p, unix.O_WRONLY|unix.O_CREAT|unix.O_NONBLOCK|unix.O_NOCTTY, 0o644)
		if err != nil {
			return -1, err
		}
		_ = unix.Close(made)
		return t.open(p, unix.O_PATH, 0)
	}
	return fd, err
}

// write makes the file p anew with data; a symlink in its place is replaced.
func (t tree) write(p string, data []byte, mode uint32) error {
	p = path.Clean("/" + p)
	parent, err := t.dir(path.Dir(p), 0o755)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	_ = unix.Unlinkat(parent, path.Base(p), 0)
	fd, err := unix.Openat(parent, path.Base(p), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return &os.PathError{Op: "create", Path: p, Err: err}
	}
	f := os.NewFile(uintptr(fd), p)
	if _, err := f.Write(data); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

func (t tree) symlink(target, p string) error {
	p = path.Clean("/" + p)
	parent, err := t.dir(path.Dir(p), 0o755)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	if err := unix.Symlinkat(target, parent, path.Base(p)); err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "symlink", Path: p, Err: err}
	}
	return nil
}

func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// option is one parameter of a new filesystem; an empty value is a flag.
type option struct{ key, value string }

// parseOptions splits "a=b,c" of mount(8).
func parseOptions(list string) []option {
	var out []option
	for word := range strings.SplitSeq(list, ",") {
		if word == "" {
			continue
		}
		k, v, _ := strings.Cut(word, "=")
		out = append(out, option{k, v})
	}
	return out
}

// newFS makes a filesystem that is not attached anywhere (fsopen(2)).
func newFS(fstype, source string, attrs int, opts ...option) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make %s: %w", fstype, err)
	}
	defer unix.Close(fs)
	if source != "" {
		if err := unix.FsconfigSetString(fs, "source", source); err != nil {
			return -1, fmt.Errorf("set source %q of %s: %w", source, fstype, err)
		}
	}
	for _, o := range opts {
		if o.value == "" {
			err = unix.FsconfigSetFlag(fs, o.key)
		} else {
			err = unix.FsconfigSetString(fs, o.key, o.value)
		}
		if err != nil {
			return -1, fmt.Errorf("set %s=%s of %s: %w", o.key, o.value, fstype, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make %s: %w", fstype, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("make mount of %s: %w", fstype, err)
	}
	return fd, nil
}

// attach puts a detached mount onto the file behind target.
func attach(mount, target int) error {
	return os.NewSyscallError("move_mount",
		unix.MoveMount(mount, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// cloneTree is a detached copy of the mount at fd.
func cloneTree(fd int, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	m, err := unix.OpenTree(fd, "", flags)
	return m, os.NewSyscallError("open_tree", err)
}

// setAttr changes flags of a mount (mount_setattr(2)).
func setAttr(fd int, recursive bool, attr unix.MountAttr) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return os.NewSyscallError("mount_setattr", unix.MountSetattr(fd, "", flags, &attr))
}

// mountFS makes a filesystem at directory p of the tree, and the directory too.
func (t tree) mountFS(p, fstype string, attrs int, opts ...option) error {
	target, err := t.dir(p, 0o755)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	source := fstype
	if fstype == "cgroup2" {
		source = "cgroup" // as systemd calls it, which scripts look for
	}
	m, err := newFS(fstype, source, attrs, opts...)
	if err != nil {
		return fmt.Errorf("mount %s: %w", p, err)
	}
	defer unix.Close(m)
	if err := attach(m, target); err != nil {
		return fmt.Errorf("mount %s: %w", p, err)
	}
	return nil
}

// bindSelf makes p of the tree a mount point of its own with attributes set.
func (t tree) bindSelf(p string, recursive bool, attrs uint64) error {
	fd, err := t.open(p, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	m, err := cloneTree(fd, recursive)
	if err != nil {
		return fmt.Errorf("bind %s: %w", p, err)
	}
	defer unix.Close(m)
	if attrs != 0 {
		if err := setAttr(m, recursive, unix.MountAttr{Attr_set: attrs}); err != nil {
			return fmt.Errorf("bind %s: %w", p, err)
		}
	}
	if err := attach(m, fd); err != nil {
		return fmt.Errorf("bind %s: %w", p, err)
	}
	return nil
}

// isMountPoint tells whether p is the root of a mount (statx(2)).
func (t tree) isMountPoint(p string) bool {
	fd, err := t.open(p, unix.O_PATH, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, 0, &st) != nil {
		return false
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

func isDir(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// memShare is part of the memory as tmpfs's size option, like "10%".
func tmpfsOptions(mode, size, inodes string, base uint32, shifted bool) []option {
	o := []option{{"mode", mode}, {"size", size}, {"nr_inodes", inodes}}
	if shifted {
		id := strconv.FormatUint(uint64(base), 10)
		o = append(o, option{"uid", id}, option{"gid", id})
	}
	return o
}

// Unmount takes a mount of the host away, lazily; what is none is left alone.
func Unmount(p string) error {
	err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unmount", Path: p, Err: err}
	}
	return nil
}

// HoldNamespace mounts a namespace's file on a new file, so that the namespace stays
// when its last process is gone.
func HoldNamespace(ns, file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	_ = f.Close()
	if err := unix.Mount(ns, file, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "mount", Path: file, Err: err}
	}
	return nil
}
