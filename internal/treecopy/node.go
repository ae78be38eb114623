package treecopy

import (
	"crypto/rand"
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// smallFile is up to which size, in bytes, a file is copied by reading and
// writing it at once, which is less work than a copy inside the kernel.
const smallFile = 256 << 10

// buffers are one worker's.
type buffers struct {
	names [32 << 10]byte
	data  [smallFile]byte
}

// file is a file that is not a directory, and where its copy goes.
type file struct {
	in       *dir
	name     string // of the copy
	as       string // the name that it has until it is whole
	fd       int
	st       *unix.Stat_t
	readable bool // fd is open for reading, and the file a regular one; else O_PATH
}

// openRegular opens what was a regular file when its directory was read. Should it
// have become something else since, it is not acted on: a machine that writes into
// the tree can make no device that does something when it is opened.
func openRegular(dir int, name string) (int, unix.Stat_t, error) {
	var st unix.Stat_t
	flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		fd, err = unix.Openat(dir, name, flags, 0)
	}
	if err != nil {
		return -1, st, err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return -1, st, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(fd)
		return -1, st, unix.ESTALE
	}
	return fd, st, nil
}

// openPath opens an entry of dir without following or acting on it.
func openPath(dir int, name string) (int, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, st, err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

func openDir(dir int, name string) (int, error) {
	flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		return unix.Openat(dir, name, flags, 0)
	}
	return fd, err
}

func makeDir(d *dir, name string, merge bool) (existed bool, err error) {
	err = unix.Mkdirat(d.dst, name, 0o700)
	if errors.Is(err, unix.EEXIST) && merge {
		return true, nil
	}
	if err != nil {
		return false, pathError("mkdir", d, name, err)
	}
	return false, nil
}

// openLinkNode opens path below root where its last part is a symlink itself.
func openLinkNode(root int, path string) (int, error) {
	dir, name := ".", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	parent, err := unix.Openat2(root, dir, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(parent) }()
	return unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// mountRoot says whether something is mounted on an open directory.
func mountRoot(fd int) bool {
	var stx unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE, &stx)
	return err == nil && stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// node copies one file that is not a directory.
func (c *copier) node(f file, buf *buffers) error {
	return c.put(f.in, f.name, func(as string) error {
		f.as = as
		return c.build(f, buf)
	})
}

// put has an entry of d made. One that exists already and may be replaced is so by
// one that was made under another name.
func (c *copier) put(d *dir, name string, build func(as string) error) error {
	err := build(name)
	if !c.opts.Replace || !errors.Is(err, unix.EEXIST) {
		return err
	}
	as := ".#" + rand.Text()
	if err := build(as); err != nil {
		return err
	}
	err = unix.Renameat(d.dst, as, d.dst, name)
	// Names of one file already are not renamed, and both stay.
	_ = unix.Unlinkat(d.dst, as, 0)
	return pathError("replace", d, name, err)
}

// takeBack removes what was made of a file whose copy has failed.
func (f file) takeBack(err *error) {
	if *err != nil {
		_ = unix.Unlinkat(f.in.dst, f.as, 0)
	}
}

// build copies a file to where nothing is yet. It leaves no half of one.
func (c *copier) build(f file, buf *buffers) (err error) {
	d, name := f.in, f.name
	switch f.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if f.readable {
			return c.regular(f, buf)
		}
		fd, err := unix.Open(procPath(f.fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
		if errors.Is(err, unix.EPERM) {
			fd, err = unix.Open(procPath(f.fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			return pathError("open", d, name, err)
		}
		defer func() { _ = unix.Close(fd) }()
		f.fd = fd
		return c.regular(f, buf)
	case unix.S_IFLNK:
		target, err := readlink(f.fd)
		if err != nil {
			return pathError("readlink", d, name, err)
		}
		if err := unix.Symlinkat(target, d.dst, f.as); err != nil {
			return pathError("symlink", d, name, err)
		}
	default:
		if err := unix.Mknodat(d.dst, f.as, f.st.Mode&(unix.S_IFMT|0o7777), int(f.st.Rdev)); err != nil {
			return pathError("mknod", d, name, err)
		}
	}
	defer f.takeBack(&err)
	made, now, err := openPath(d.dst, f.as)
	if err != nil {
		return pathError("open", d, name, err)
	}
	defer func() { _ = unix.Close(made) }()
	if now.Mode&unix.S_IFMT != f.st.Mode&unix.S_IFMT {
		return pathError("copy", d, name, unix.ESTALE)
	}
	return c.attributes(f.fd, made, d, f.st)
}

func readlink(fd int) (string, error) {
	for size := 256; ; size *= 2 {
		buf := make([]byte, size)
		n, err := unix.Readlinkat(fd, "", buf)
		if err != nil {
			return "", err
		}
		if n < size {
			return string(buf[:n]), nil
		}
	}
}

func (c *copier) regular(f file, buf *buffers) (err error) {
	d, name, st := f.in, f.name, f.st
	// Most files get their mode by this, and belong to root, who makes them: then
	// nothing is left to set. Who else may open it meanwhile may do so in the end too.
	dst, err := unix.Openat(d.dst, f.as, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, st.Mode&0o777)
	if err != nil {
		return pathError("create", d, name, err)
	}
	defer f.takeBack(&err)
	defer func() { _ = unix.Close(dst) }()
	if st.Size > 0 {
		if err := c.content(f.fd, dst, st, buf); err != nil {
			return pathError("copy", d, name, err)
		}
	}
	return c.fileAttributes(dst, f)
}

// attributes gives dst owner, mode, extended attributes and times of src. Either
// may be an O_PATH descriptor. The owner comes first: changing it drops set-uid
// bits and capabilities.
func (c *copier) attributes(src, dst int, d *dir, st *unix.Stat_t) error {
	uid, gid := c.owner(st)
	if err := unix.Fchownat(dst, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
		return pathError("chown", d, "", err)
	}
	isLink := st.Mode&unix.S_IFMT == unix.S_IFLNK
	if !isLink {
		if err := unix.Chmod(procPath(dst), st.Mode&0o7777); err != nil {
			return pathError("chmod", d, "", err)
		}
	}
	if err := copyXattrs(src, dst, isLink); err != nil {
		return pathError("copy attributes of", d, "", err)
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	if isLink {
		if err := utimensEmpty(dst, times); err != nil {
			return pathError("set times of", d, "", err)
		}
		return nil
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, procPath(dst), times, 0); err != nil {
		return pathError("set times of", d, "", err)
	}
	return nil
}

// fileAttributes is attributes for two regular files that are open, which saves
// looking them up for each call, and setting what is right already.
func (c *copier) fileAttributes(dst int, f file) error {
	uid, gid := c.owner(f.st)
	var now unix.Stat_t
	if err := unix.Fstat(dst, &now); err != nil {
		return pathError("stat", f.in, f.name, err)
	}
	if int(now.Uid) != uid || int(now.Gid) != gid {
		if err := unix.Fchown(dst, uid, gid); err != nil {
			return pathError("chown", f.in, f.name, err)
		}
		now.Mode = 0 // which may have changed it
	}
	if (now.Mode^f.st.Mode)&0o7777 != 0 {
		if err := unix.Fchmod(dst, f.st.Mode&0o7777); err != nil {
			return pathError("chmod", f.in, f.name, err)
		}
	}
	if n, err := unix.Flistxattr(f.fd, nil); err != nil || n > 0 {
		if err := copyXattrs(f.fd, dst, false); err != nil {
			return pathError("copy attributes of", f.in, f.name, err)
		}
	}
	if err := futimens(dst, []unix.Timespec{f.st.Atim, f.st.Mtim}); err != nil {
		return pathError("set times of", f.in, f.name, err)
	}
	return nil
}

func (c *copier) owner(st *unix.Stat_t) (uid, gid int) {
	if c.opts.Owner == nil {
		return int(st.Uid), int(st.Gid)
	}
	u, g := c.opts.Owner(st.Uid, st.Gid)
	return int(u), int(g)
}

func procPath(fd int) string {
	return "/proc/self/fd/" + strconv.Itoa(fd)
}

func (c *copier) progress(n int64) {
	if c.opts.Progress != nil {
		c.opts.Progress(n)
	}
}

// content copies a file with its holes: by sharing extents, inside the kernel,
// or by hand, whichever works first.
func (c *copier) content(src, dst int, st *unix.Stat_t, buf *buffers) error {
	if c.reflink.Load() {
		err := unix.IoctlFileClone(dst, src)
		if err == nil {
			c.progress(st.Size)
			return nil
		}
		if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
			c.reflink.Store(false)
		}
	}
	if st.Size <= smallFile && st.Blocks*512 >= st.Size {
		n, err := unix.Pread(src, buf.data[:st.Size], 0)
		if err == nil && int64(n) == st.Size {
			n, err = unix.Pwrite(dst, buf.data[:n], 0)
			if err != nil {
				return err
			}
			if int64(n) == st.Size {
				c.progress(st.Size)
				return nil
			}
		}
		// An odd one: it shrank, or the disk is nearly full.
	}
	return contentFD(c.ctx, src, dst, st.Size, buf.data[:], c.opts.Progress)
}
