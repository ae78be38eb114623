package treecopy

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

var errEOF = io.EOF

// openPath opens an entry of dir without following or acting on it.
func openPath(dir *os.File, name string) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, st, &os.PathError{Op: "open", Path: name, Err: err}
	}
	file := os.NewFile(uintptr(fd), name)
	if err := unix.Fstat(fd, &st); err != nil {
		_ = file.Close()
		return nil, st, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return file, st, nil
}

func openDir(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func makeDir(dir *os.File, name string, merge bool) (existed bool, err error) {
	err = unix.Mkdirat(int(dir.Fd()), name, 0o700)
	if errors.Is(err, unix.EEXIST) && merge {
		return true, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return false, nil
}

// openLinkNode opens path below root where its last part is a symlink itself.
func openLinkNode(root *os.File, path string) (int, error) {
	dir, name := ".", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	parent, err := unix.Openat2(int(root.Fd()), dir, &unix.OpenHow{
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
func mountRoot(f *os.File) bool {
	var stx unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_TYPE, &stx)
	return err == nil && stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// node copies one file that is not a directory.
func (c *copier) node(ctx context.Context, d *dir, name string, src *os.File, st *unix.Stat_t) error {
	to := int(d.dst.Fd())
	if c.opts.Replace {
		if err := unix.Unlinkat(to, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return pathError("replace", d, name, err)
		}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.regular(ctx, d, name, src, st)
	case unix.S_IFLNK:
		target, err := readlink(src)
		if err != nil {
			return pathError("readlink", d, name, err)
		}
		if err := unix.Symlinkat(target, to, name); err != nil {
			return pathError("symlink", d, name, err)
		}
	default:
		if err := unix.Mknodat(to, name, st.Mode&(unix.S_IFMT|0o7777), int(st.Rdev)); err != nil {
			return pathError("mknod", d, name, err)
		}
	}
	made, now, err := openPath(d.dst, name)
	if err != nil {
		return err
	}
	defer func() { _ = made.Close() }()
	if now.Mode&unix.S_IFMT != st.Mode&unix.S_IFMT {
		return pathError("copy", d, name, unix.ESTALE)
	}
	return c.attributes(src, made, st)
}

func readlink(f *os.File) (string, error) {
	for size := 256; ; size *= 2 {
		buf := make([]byte, size)
		n, err := unix.Readlinkat(int(f.Fd()), "", buf)
		if err != nil {
			return "", err
		}
		if n < size {
			return string(buf[:n]), nil
		}
	}
}

func (c *copier) regular(ctx context.Context, d *dir, name string, node *os.File, st *unix.Stat_t) error {
	fd, err := unix.Open(procPath(node), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		fd, err = unix.Open(procPath(node), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return pathError("open", d, name, err)
	}
	src := os.NewFile(uintptr(fd), name)
	defer func() { _ = src.Close() }()
	out, err := unix.Openat(int(d.dst.Fd()), name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return pathError("create", d, name, err)
	}
	dst := os.NewFile(uintptr(out), name)
	defer func() { _ = dst.Close() }()
	if st.Size > 0 {
		copied := false
		if st.Size <= copyChunk && st.Blocks*512 >= st.Size && !c.reflink.Load() {
			// Most files: small, without holes. One call does it.
			n, err := unix.CopyFileRange(fd, nil, out, nil, int(st.Size), 0)
			if copied = err == nil && int64(n) == st.Size; copied {
				c.progress(st.Size)
			}
		}
		if !copied {
			if err := c.content(ctx, src, dst, st.Size); err != nil {
				return pathError("copy", d, name, err)
			}
		}
	}
	if err := c.fileAttributes(src, dst, st); err != nil {
		return err
	}
	if c.opts.Settled != nil && st.Size > 0 {
		c.opts.Settled(out)
	}
	return nil
}

// attributes gives dst owner, mode, extended attributes and times of src. Either
// may be an O_PATH descriptor. The owner comes first: changing it drops set-uid
// bits and capabilities.
func (c *copier) attributes(src, dst *os.File, st *unix.Stat_t) error {
	to := int(dst.Fd())
	uid, gid := st.Uid, st.Gid
	if c.opts.Owner != nil {
		uid, gid = c.opts.Owner(uid, gid)
	}
	if err := unix.Fchownat(to, "", int(uid), int(gid), unix.AT_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "chown", Path: dst.Name(), Err: err}
	}
	isLink := st.Mode&unix.S_IFMT == unix.S_IFLNK
	if !isLink {
		if err := unix.Chmod(procPath(dst), st.Mode&0o7777); err != nil {
			return &os.PathError{Op: "chmod", Path: dst.Name(), Err: err}
		}
	}
	if err := copyXattrs(src, dst, isLink); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	if isLink {
		if err := utimensEmpty(to, times); err != nil {
			return &os.PathError{Op: "set times of", Path: dst.Name(), Err: err}
		}
		return nil
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, procPath(dst), times, 0); err != nil {
		return &os.PathError{Op: "set times of", Path: dst.Name(), Err: err}
	}
	return nil
}

// fileAttributes is attributes for two regular files that are open, which saves
// looking them up for each call.
func (c *copier) fileAttributes(src, dst *os.File, st *unix.Stat_t) error {
	from, to := int(src.Fd()), int(dst.Fd())
	uid, gid := st.Uid, st.Gid
	if c.opts.Owner != nil {
		uid, gid = c.opts.Owner(uid, gid)
	}
	if err := unix.Fchown(to, int(uid), int(gid)); err != nil {
		return &os.PathError{Op: "chown", Path: dst.Name(), Err: err}
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: dst.Name(), Err: err}
	}
	if n, err := unix.Flistxattr(from, nil); err != nil || n > 0 {
		if err := copyXattrs(src, dst, false); err != nil {
			return err
		}
	}
	if err := futimens(to, []unix.Timespec{st.Atim, st.Mtim}); err != nil {
		return &os.PathError{Op: "set times of", Path: dst.Name(), Err: err}
	}
	return nil
}

func procPath(f *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
}

// content copies size bytes with their holes: by sharing extents, inside the
// kernel, or by hand, whichever works first.
func (c *copier) content(ctx context.Context, src, dst *os.File, size int64) error {
	if c.reflink.Load() {
		err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
		if err == nil {
			c.progress(size)
			return nil
		}
		if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
			c.reflink.Store(false)
		}
	}
	return Content(ctx, src, dst, size, c.opts.Progress)
}

func (c *copier) progress(n int64) {
	if c.opts.Progress != nil {
		c.opts.Progress(n)
	}
}

// copyChunk bounds one copy call, so that cancelling takes effect soon.
const copyChunk = 16 << 20

// Content copies the first size bytes of src to dst, which must be empty, and
// keeps holes. progress may be nil.
func Content(ctx context.Context, src, dst *os.File, size int64, progress func(int64)) error {
	in, out := int(src.Fd()), int(dst.Fd())
	inKernel := true
	var buf []byte
	for off := int64(0); off < size; {
		data, err := unix.Seek(in, off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO):
			data = size
		case err != nil:
			data = off
		}
		if data >= size {
			break
		}
		end, err := unix.Seek(in, data, unix.SEEK_HOLE)
		if err != nil || end > size || end <= data {
			end = size
		}
		for data < end {
			if err := ctx.Err(); err != nil {
				return err
			}
			want := int(min(end-data, copyChunk))
			n := 0
			if inKernel {
				rOff, wOff := data, data
				n, err = unix.CopyFileRange(in, &rOff, out, &wOff, want, 0)
				if err != nil {
					if errors.Is(err, unix.EINTR) {
						continue
					}
					if !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
						return err
					}
					inKernel = false
					continue
				}
			} else {
				if buf == nil {
					buf = make([]byte, 1<<20)
				}
				n, err = src.ReadAt(buf[:min(want, len(buf))], data)
				if err != nil && !errors.Is(err, io.EOF) {
					return err
				}
				if _, err := dst.WriteAt(buf[:n], data); err != nil {
					return err
				}
			}
			if n == 0 { // the file shrank meanwhile
				return unix.Ftruncate(out, size)
			}
			data += int64(n)
			if progress != nil {
				progress(int64(n))
			}
		}
		off = data
	}
	return unix.Ftruncate(out, size)
}
