package nsexec

import (
	"bytes"
	"errors"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// copier copies a tree by directory descriptors: each step names one element
// below a directory that is held, and follows no symlink, so that nothing that
// changes meanwhile on either side leads elsewhere.
type copier struct {
	job    copyJob
	report func(bytes, total uint64)
	stop   atomic.Bool // the copy has been called off

	bytes    uint64
	total    uint64 // 0: not known
	reported time.Time
	// links are files with several names that have been copied already.
	links map[inode]link
	// target is the directory that is written to; a copy of a tree into itself
	// must not descend into it.
	target inode
	depth  int
	// unshared is set once two files could not share their blocks.
	unshared bool
	buf      []byte
}

type inode struct{ dev, ino uint64 }

type link struct {
	dir  int // a descriptor of the directory it was copied to
	name string
}

// maxDepth bounds the nesting of a hostile tree; each level holds two descriptors.
const maxDepth = 400

// chunk is how much is copied between two looks at the progress.
const chunk = 8 << 20

func pathError(op, rel string, err error) error {
	if err == nil {
		return nil
	}
	if rel == "" {
		rel = "."
	}
	return &os.PathError{Op: op, Path: rel, Err: err}
}

// entry copies one directory entry. rel is its path for messages.
func (c *copier) entry(sdir int, sname string, ddir int, dname, rel string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(sdir, sname, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("look at", rel, err)
	}
	if c.stop.Load() {
		return pathError("copy", rel, unix.ECANCELED)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return c.directory(sdir, sname, ddir, dname, rel)
	case unix.S_IFREG:
		return c.regular(sdir, sname, ddir, dname, rel)
	case unix.S_IFLNK:
		return c.symlink(sdir, sname, ddir, dname, rel, &st)
	}
	return c.special(ddir, dname, rel, &st)
}

// beneath opens one element below a directory.
func beneath(dir int, name string, flags int) (int, error) {
	if flags&unix.O_PATH == 0 {
		flags |= unix.O_NOCTTY // openat2(2) refuses it beside O_PATH
	}
	for {
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{
			Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW),
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

func (c *copier) directory(sdir int, sname string, ddir int, dname, rel string) error {
	if c.depth++; c.depth > maxDepth {
		return pathError("descend into", rel, unix.ELOOP)
	}
	defer func() { c.depth-- }()
	sfd, err := beneath(sdir, sname, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return pathError("open", rel, err)
	}
	source := os.NewFile(uintptr(sfd), rel)
	defer source.Close()
	var st unix.Stat_t
	if err := unix.Fstat(sfd, &st); err != nil {
		return pathError("look at", rel, err)
	}
	if c.target != (inode{}) && c.target == (inode{st.Dev, st.Ino}) {
		return nil // the copy itself, inside of what is copied
	}
	made := true
	if err := unix.Mkdirat(ddir, dname, 0o700); err != nil {
		if !errors.Is(err, unix.EEXIST) {
			return pathError("make directory", rel, err)
		}
		made = false // merge
	}
	dfd, err := beneath(ddir, dname, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return pathError("open copy of", rel, err)
	}
	defer unix.Close(dfd)
	if c.target == (inode{}) {
		var dst unix.Stat_t
		if err := unix.Fstat(dfd, &dst); err != nil {
			return pathError("look at copy of", rel, err)
		}
		c.target = inode{dst.Dev, dst.Ino}
	}
	for {
		names, err := source.Readdirnames(256)
		for _, name := range names {
			if err := c.entry(sfd, name, dfd, name, path.Join(rel, name)); err != nil {
				return err
			}
		}
		if err != nil {
			break // the end
		}
	}
	c.dropLinks(dfd)
	if !made {
		return nil
	}
	return c.attributes(sfd, dfd, &st, rel)
}

// dropLinks forgets links that would be made by way of a descriptor that is
// about to be closed.
func (c *copier) dropLinks(dir int) {
	for key, l := range c.links {
		if l.dir != dir {
			continue
		}
		if dup, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 3); err == nil && len(c.links) < 4096 {
			c.links[key] = link{dup, l.name}
		} else {
			delete(c.links, key)
		}
	}
}

func (c *copier) regular(sdir int, sname string, ddir int, dname, rel string) error {
	sfd, err := beneath(sdir, sname, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return pathError("open", rel, err)
	}
	defer unix.Close(sfd)
	var st unix.Stat_t
	if err := unix.Fstat(sfd, &st); err != nil {
		return pathError("look at", rel, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return pathError("open", rel, unix.EAGAIN) // swapped meanwhile
	}
	if rel == "" && st.Size > 0 {
		c.total = uint64(st.Size)
	}
	key := inode{st.Dev, st.Ino}
	if first, ok := c.links[key]; ok && st.Nlink > 1 {
		err := c.replace(ddir, dname, func(name string) error {
			return unix.Linkat(first.dir, first.name, ddir, name, 0)
		})
		if err == nil || errors.Is(err, unix.EEXIST) {
			return pathError("link", rel, err)
		}
		// Another file system below the target, or the link limit: copy again.
	}
	err = c.replace(ddir, dname, func(name string) error {
		dfd, err := unix.Openat(ddir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		defer unix.Close(dfd)
		if err = c.content(sfd, dfd, &st); err == nil {
			err = c.attributes(sfd, dfd, &st, rel)
		}
		if err != nil {
			_ = unix.Unlinkat(ddir, name, 0)
		}
		return err
	})
	if err == nil && st.Nlink > 1 {
		if c.links == nil {
			c.links = map[inode]link{}
		}
		c.links[key] = link{ddir, dname}
	}
	return pathError("copy", rel, err)
}

// replace makes an entry with f; where one exists already and may be replaced,
// under a temporary name that then takes its place.
func (c *copier) replace(ddir int, dname string, f func(name string) error) error {
	err := f(dname)
	if !c.job.Replace || !errors.Is(err, unix.EEXIST) {
		return err
	}
	tmp := ".#copy" + strings.ReplaceAll(time.Now().Format("150405.000000000"), ".", "")
	if err := f(tmp); err != nil {
		return err
	}
	if err := unix.Renameat(ddir, tmp, ddir, dname); err != nil {
		_ = unix.Unlinkat(ddir, tmp, 0)
		return err
	}
	return nil
}

// content copies data and keeps holes. It shares blocks where the file system can.
func (c *copier) content(sfd, dfd int, st *unix.Stat_t) error {
	size := st.Size
	if size == 0 {
		return nil
	}
	if !c.unshared {
		if unix.IoctlFileClone(dfd, sfd) == nil {
			c.count(uint64(size))
			return nil
		}
		c.unshared = true
	}
	if size <= int64(len(c.buf)) && st.Blocks*512 >= size {
		// A small file without holes: reading and writing it is less work than a
		// copy inside the kernel. An odd one, that shrank, takes the long way.
		if n, err := unix.Pread(sfd, c.buf[:size], 0); err == nil && int64(n) == size {
			if n, err = unix.Pwrite(dfd, c.buf[:size], 0); err == nil && int64(n) == size {
				c.count(uint64(size))
				return nil
			}
		}
	}
	for offset := int64(0); offset < size; {
		data, err := unix.Seek(sfd, offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			data = offset // no SEEK_DATA here
		}
		hole, err := unix.Seek(sfd, data, unix.SEEK_HOLE)
		if err != nil {
			hole = size
		}
		n, err := c.span(sfd, dfd, data, min(hole, size)-data)
		if err != nil {
			return err
		}
		if n == 0 {
			break // became shorter meanwhile
		}
		offset = data + n
	}
	return unix.Ftruncate(dfd, size)
}

// span copies length bytes at offset.
func (c *copier) span(sfd, dfd int, offset, length int64) (int64, error) {
	done := int64(0)
	inKernel := true
	for done < length {
		if c.stop.Load() {
			return done, unix.ECANCELED
		}
		roff, woff := offset+done, offset+done
		want := int(min(length-done, chunk))
		n, err := 0, error(nil)
		if inKernel {
			n, err = unix.CopyFileRange(sfd, &roff, dfd, &woff, want, 0)
			if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || err == nil && n == 0 {
				// Not between these two; some file systems say so by copying nothing.
				inKernel = false
				continue
			}
		} else {
			n, err = unix.Pread(sfd, c.buf[:min(want, len(c.buf))], roff)
			for at := 0; err == nil && at < n; {
				var w int
				w, err = unix.Pwrite(dfd, c.buf[at:n], woff+int64(at))
				at += w
			}
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, nil
		}
		done += int64(n)
		c.count(uint64(n))
	}
	return done, nil
}

// count tells the progress ten times a second.
func (c *copier) count(n uint64) {
	c.bytes += n
	if now := time.Now(); now.Sub(c.reported) > 100*time.Millisecond {
		c.reported = now
		c.report(c.bytes, c.total)
	}
}

func (c *copier) owner(st *unix.Stat_t) (uid, gid int) {
	if c.job.Owner != nil {
		return int(c.job.Owner.UID), int(c.job.Owner.GID)
	}
	return int(st.Uid), int(st.Gid)
}

// attributes gives a copy the owner, mode, extended attributes and times of its
// original. Owner first: it takes set-id bits and capabilities away.
func (c *copier) attributes(sfd, dfd int, st *unix.Stat_t, rel string) error {
	uid, gid := c.owner(st)
	if err := unix.Fchown(dfd, uid, gid); err != nil {
		return pathError("set owner of copy of", rel, err)
	}
	if err := unix.Fchmod(dfd, st.Mode&0o7777); err != nil {
		return pathError("set mode of copy of", rel, err)
	}
	copyXattrs(sfd, dfd)
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(dfd, "", times, unix.AT_EMPTY_PATH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return pathError("set times of copy of", rel, err)
	} else if err != nil {
		tv := []unix.Timeval{unix.NsecToTimeval(st.Atim.Nano()), unix.NsecToTimeval(st.Mtim.Nano())}
		return pathError("set times of copy of", rel, unix.Futimes(dfd, tv))
	}
	return nil
}

// copyXattrs copies what the target's file system takes: attributes are extra.
func copyXattrs(sfd, dfd int) {
	size, err := unix.Flistxattr(sfd, nil)
	if err != nil || size == 0 {
		return
	}
	names := make([]byte, size)
	if size, err = unix.Flistxattr(sfd, names); err != nil {
		return
	}
	value := make([]byte, 64<<10)
	for name := range bytes.SplitSeq(names[:size], []byte{0}) {
		if len(name) == 0 {
			continue
		}
		if n, err := unix.Fgetxattr(sfd, string(name), value); err == nil {
			_ = unix.Fsetxattr(dfd, string(name), value[:n], 0)
		}
	}
}

func (c *copier) symlink(sdir int, sname string, ddir int, dname, rel string, st *unix.Stat_t) error {
	buf := make([]byte, 4097)
	n, err := unix.Readlinkat(sdir, sname, buf)
	if err != nil {
		return pathError("read link", rel, err)
	}
	err = c.replace(ddir, dname, func(name string) error {
		return unix.Symlinkat(string(buf[:n]), ddir, name)
	})
	if err != nil {
		return pathError("make link", rel, err)
	}
	return c.nodeAttributes(ddir, dname, rel, st)
}

// special makes FIFOs, sockets and device nodes again.
func (c *copier) special(ddir int, dname, rel string, st *unix.Stat_t) error {
	err := c.replace(ddir, dname, func(name string) error {
		return unix.Mknodat(ddir, name, st.Mode&^0o7077|0o600, int(st.Rdev))
	})
	if err != nil {
		return pathError("make node", rel, err)
	}
	return c.nodeAttributes(ddir, dname, rel, st)
}

// nodeAttributes is attributes for what can't be opened. The descriptor holds
// what was just made, whatever has the name by now.
func (c *copier) nodeAttributes(ddir int, dname, rel string, st *unix.Stat_t) error {
	fd, err := beneath(ddir, dname, unix.O_PATH)
	if errors.Is(err, unix.ELOOP) {
		// RESOLVE_NO_SYMLINKS refuses a symlink even with O_PATH|O_NOFOLLOW.
		fd, err = unix.Openat(ddir, dname, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return pathError("open copy of", rel, err)
	}
	defer unix.Close(fd)
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil || now.Mode&unix.S_IFMT != st.Mode&unix.S_IFMT {
		return pathError("open copy of", rel, unix.EAGAIN)
	}
	uid, gid := c.owner(st)
	if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("set owner of copy of", rel, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		// chmod by descriptor needs an opened file; the path of one in /proc
		// leads to exactly what is held.
		if err := unix.Fchmodat(unix.AT_FDCWD, procFD(fd), st.Mode&0o7777, 0); err != nil {
			return pathError("set mode of copy of", rel, err)
		}
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	_ = unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH)
	return nil
}
