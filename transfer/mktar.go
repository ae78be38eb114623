package transfer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"time"

	"machined/internal/sys"

	"golang.org/x/sys/unix"
)

// Tar writes the tree below root, an open directory, as an archive. done is told
// how many bytes of files have been read so far. Sockets are left out, as by
// tar(1), and so is what is mounted on the tree.
func Tar(ctx context.Context, root *os.File, w io.Writer, done func(bytes int64)) error {
	out := bufio.NewWriterSize(w, 512<<10)
	m := &mktar{ctx: ctx, tw: tar.NewWriter(out), links: map[[2]uint64]string{}, done: done}
	if err := m.node(root, root, "."); err != nil {
		return err
	}
	if err := m.tw.Close(); err != nil {
		return err
	}
	return out.Flush()
}

type mktar struct {
	ctx   context.Context
	tw    *tar.Writer
	links map[[2]uint64]string
	total int64
	done  func(int64)
}

// node writes the entry for one file, and those below a directory.
func (m *mktar) node(root, node *os.File, name string) error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("pack %q: %w", shorten(name), err) }
	var st unix.Stat_t
	if err := unix.Fstat(int(node.Fd()), &st); err != nil {
		return fail(err)
	}
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := m.links[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			if err := m.tw.WriteHeader(h); err != nil {
				return fail(err)
			}
			return nil
		}
		m.links[id] = name
	}
	switch kind {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(node.Fd()), "", buf)
		if err != nil {
			return fail(err)
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, string(buf[:n])
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if kind == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil
	}
	if kind != unix.S_IFLNK {
		h.PAXRecords = records(sys.FDPath(node))
	}
	if kind != unix.S_IFREG {
		if err := m.tw.WriteHeader(h); err != nil {
			return fail(err)
		}
		if kind == unix.S_IFDIR {
			return m.children(root, node, name)
		}
		return nil
	}
	file, err := sys.Reopen(node, unix.O_RDONLY)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = file.Close() }()
	if err := m.tw.WriteHeader(h); err != nil {
		return fail(err)
	}
	return m.content(file, name, st.Size)
}

// content copies exactly size bytes: a file that shrank is filled up with zeros,
// one that grew is cut.
func (m *mktar) content(file *os.File, name string, size int64) error {
	if size == 0 {
		return nil
	}
	buf := make([]byte, min(size, 256<<10))
	for left := size; left > 0; {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		n, err := file.Read(buf[:min(left, int64(len(buf)))])
		if n == 0 && errors.Is(err, io.EOF) {
			n = int(min(left, int64(len(buf))))
			clear(buf[:n])
			err = nil
		}
		if err != nil {
			return fmt.Errorf("pack %q: %w", shorten(name), err)
		}
		if _, err := m.tw.Write(buf[:n]); err != nil {
			return fmt.Errorf("pack %q: %w", shorten(name), err)
		}
		left -= int64(n)
		m.total += int64(n)
		m.done(m.total)
	}
	return nil
}

func (m *mktar) children(root, node *os.File, name string) error {
	if node != root {
		var stx unix.Statx_t
		if unix.Statx(int(node.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_TYPE, &stx) == nil && stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
			return nil
		}
	}
	fd, err := unix.Openat(int(node.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("pack %q: %w", shorten(name), err)
	}
	dir := os.NewFile(uintptr(fd), name)
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("pack %q: %w", shorten(name), err)
	}
	sort.Strings(names)
	for _, child := range names {
		entry, err := openNode(fd, child, unix.O_PATH)
		if errors.Is(err, unix.ENOENT) {
			continue // removed meanwhile
		}
		if err != nil {
			return fmt.Errorf("pack %q: %w", shorten(name+"/"+child), err)
		}
		err = m.node(root, entry, name+"/"+child)
		_ = entry.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// records reads the extended attributes and ACLs of a file for its header.
func records(path string) map[string]string {
	names := make([]byte, 4096)
	n, err := unix.Listxattr(path, names)
	if err != nil || n == 0 {
		return nil
	}
	out := map[string]string{}
	value := make([]byte, xattrValueMax)
	for _, raw := range bytes.Split(names[:n], []byte{0}) {
		name := string(raw)
		if name == "" || name == "security.selinux" || bytes.HasPrefix(raw, []byte("btrfs.")) || bytes.ContainsRune(raw, '=') {
			continue
		}
		size, err := unix.Getxattr(path, name, value)
		if err != nil {
			continue
		}
		switch name {
		case xattrAccess, xattrDefault:
			key := aclAccess
			if name == xattrDefault {
				key = aclDefault
			}
			if text := formatACL(value[:size]); text != "" {
				out[key] = text
			}
		default:
			out[xattrRecord+name] = string(value[:size])
		}
	}
	return out
}
