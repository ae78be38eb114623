package transfer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"machined/internal/sys"

	"golang.org/x/sys/unix"
)

// creator is what the kernel gives a new file of this process: its owner, and
// which bits of its mode it takes away (umask(2)).
type creator struct{ uid, gid, umask uint32 }

func ownCreator() creator {
	c := creator{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), umask: 0o777}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return c // every mode is set by a call of its own
	}
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte("Umask:")); ok {
			if mask, err := strconv.ParseUint(string(bytes.TrimSpace(rest)), 8, 9); err == nil {
				c.umask = uint32(mask)
			}
		}
	}
	return c
}

// inheritance is what a directory makes of files that are created in it.
type inheritance struct {
	gid   uint32
	known bool // and it has no default ACL
}

// exact says whether a new file gets just this owner and this mode by being
// created, which spares two calls for most files.
func (c creator) exact(in inheritance, uid, gid int, mode uint32) (owner, bits bool) {
	owner = in.known && uint32(uid) == c.uid && uint32(gid) == c.gid && in.gid == c.gid
	return owner, owner && mode&(c.umask|0o7000) == 0
}

// enter makes an open directory, which u takes over, the one for the next entries.
func (u *untar) enter(dir *os.File, path string) {
	u.parent, u.parentPath = dir, path
	u.inherits = inheritance{}
	var st unix.Stat_t
	if unix.Fstat(int(dir.Fd()), &st) != nil {
		return
	}
	_, err := unix.Fgetxattr(int(dir.Fd()), xattrDefault, nil)
	u.inherits = inheritance{gid: st.Gid, known: errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP)}
}

// openParent opens the directory for an entry, and makes it where it is missing.
func (u *untar) openParent(dir string) (*os.File, error) {
	if u.parent != nil && u.parentPath == dir {
		return u.parent, nil
	}
	u.forget()
	if dir == "" {
		u.enter(u.root, "")
		return u.root, nil
	}
	f, err := sys.OpenIn(int(u.root.Fd()), dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		f, err = u.makeParents(dir)
	}
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("%w: %q: %w", ErrArchive, shorten(dir), withoutPath(err))
	case err != nil:
		return nil, err
	}
	u.enter(f, dir)
	return f, nil
}

// smallRecords is how much a header may say, in bytes, that waits in memory with
// its file.
const smallRecords = 64 << 10

// largestFile is the largest file that an entry may be, in bytes. Most of such a one
// can only be holes, whose zeros are read all the same.
const largestFile = maxDisk

// recordBytes is the size of what the extended header of an entry says.
func recordBytes(h *tar.Header) int {
	n := 0
	for key, value := range h.PAXRecords {
		n += len(key) + len(value)
	}
	return n
}

func (u *untar) regular(ctx context.Context, h *tar.Header, at int, base string) error {
	fail := func(what string, err error) error {
		return fmt.Errorf("unpack %q: %s: %w", shorten(h.Name), what, err)
	}
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	mode := uint32(h.Mode) & 0o7777
	owned, exact := u.self.exact(u.inherits, h.Uid, h.Gid, mode)
	create := uint32(0o600)
	if exact {
		create = mode
	}
	fd, err := unix.Openat(at, base, flags, create)
	if errors.Is(err, unix.EEXIST) {
		if err := makeRoom(at, base); err != nil {
			return fail("replace", err)
		}
		fd, err = unix.Openat(at, base, flags, create)
	}
	if err != nil {
		return fail("create", err)
	}
	if h.Size <= smallFile && recordBytes(h) <= smallRecords {
		buf := u.fill.buffer()
		n, err := io.ReadFull(u.tr, buf[:h.Size])
		if err != nil {
			u.fill.release(buf)
			_ = unix.Close(fd)
			return archiveError("unpack %q", shorten(h.Name), err)
		}
		u.fill.put(piece{fd: fd, buf: buf, n: n, header: h, owned: owned, exact: exact})
		return nil
	}
	file := os.NewFile(uintptr(fd), base)
	defer func() { _ = file.Close() }()
	if h.Size > largestFile {
		return fail("file", fmt.Errorf("%w: it claims to have %d bytes", ErrArchive, h.Size))
	}
	if h.Size > 1<<30 { // what the file system cannot hold shows now, not when all its zeros have been read
		if err := unix.Ftruncate(fd, h.Size); err != nil {
			return fail("file of "+bytesText(h.Size), err)
		}
	}
	sparse := &sparseWriter{f: file}
	for left := h.Size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(u.tr, u.buf[:min(int64(len(u.buf)), left)])
		if _, werr := sparse.Write(u.buf[:n]); werr != nil {
			return fail("write", withoutPath(werr))
		}
		if err != nil {
			return archiveError("unpack %q", shorten(h.Name), err)
		}
		left -= int64(n)
	}
	if err := sparse.finish(); err != nil {
		return fail("write", withoutPath(err))
	}
	if err := setFileAttributes(fd, h, owned, exact); err != nil {
		return fail("set attributes", err)
	}
	if u.fill.written != nil {
		u.fill.written(h.Size)
	}
	return nil
}
