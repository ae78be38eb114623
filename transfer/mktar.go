package transfer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"machined/internal/sys"

	"golang.org/x/sys/unix"
)

// packSmall is the largest file whose content is read ahead of the archive, in
// bytes, and packAhead how many such files wait.
const (
	packSmall = 128 << 10
	packAhead = 32
)

// Tar writes the tree below root, an open directory, as an archive. done is told
// how many bytes of files have been read so far. Sockets are left out, as by
// tar(1), and so is what is mounted on the tree. The tree is read from a goroutine
// of its own while what was read is written.
func Tar(ctx context.Context, root *os.File, w io.Writer, done func(bytes int64)) error {
	return writeTar(ctx, root, w, done, false)
}

// writeTar is Tar; with layer it writes a tree that overlayfs stacks as a layer of an
// OCI image.
func writeTar(ctx context.Context, root *os.File, w io.Writer, done func(bytes int64), layer bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := &mktar{ctx: ctx, layer: layer, links: map[[2]uint64]string{}, items: make(chan packItem, packAhead), free: make(chan []byte, packAhead+2)}
	for range cap(m.free) {
		m.free <- nil
	}
	walked := make(chan error, 1)
	go func() {
		defer close(m.items)
		walked <- m.node(root, root, ".")
	}()
	err := m.write(w, done)
	cancel()
	for item := range m.items {
		m.release(item)
	}
	// When the walk fails, the archive only lacks what could not be read.
	if walkErr := <-walked; walkErr != nil && (err == nil || !errors.Is(walkErr, context.Canceled)) {
		return walkErr
	}
	return err
}

// packItem is an entry with its content, or with the open file for it.
type packItem struct {
	header *tar.Header
	data   []byte
	file   *os.File
	sparse []extent // of file, when it has holes
}

type mktar struct {
	ctx   context.Context //nolint:containedctx // lives as long as one archive
	links map[[2]uint64]string
	items chan packItem
	free  chan []byte
	layer bool
}

func (m *mktar) release(item packItem) {
	if item.data != nil {
		m.free <- item.data
	}
	if item.file != nil {
		_ = item.file.Close()
	}
}

// put hands an entry to the writer.
func (m *mktar) put(item packItem) error {
	if h := item.header; !utf8.ValidString(h.Name) || !utf8.ValidString(h.Linkname) {
		// Else libarchive wants to convert what is no text.
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["hdrcharset"] = "BINARY"
	}
	select {
	case m.items <- item:
		return nil
	case <-m.ctx.Done():
		m.release(item)
		return m.ctx.Err()
	}
}

// write makes the archive of the entries that come.
func (m *mktar) write(w io.Writer, done func(int64)) error {
	out := bufio.NewWriterSize(w, 512<<10)
	tw := tar.NewWriter(out)
	total := int64(0)
	var buf []byte
	one := func(item packItem) error {
		defer m.release(item)
		fail := func(err error) error { return fmt.Errorf("pack %q: %w", shorten(item.header.Name), err) }
		if item.sparse != nil {
			if err := tw.Flush(); err != nil {
				return fail(err)
			}
			if err := m.writeExtents(out, item, &total, done); err != nil {
				return fail(err)
			}
			return nil
		}
		if err := tw.WriteHeader(item.header); err != nil {
			return fail(err)
		}
		size := item.header.Size
		if item.file == nil {
			if _, err := tw.Write(item.data[:size]); err != nil {
				return fail(err)
			}
			total += size
			done(total)
			return nil
		}
		if buf == nil {
			buf = make([]byte, 512<<10)
		}
		for left := size; left > 0; {
			if err := m.ctx.Err(); err != nil {
				return err
			}
			part := buf[:min(left, int64(len(buf)))]
			if err := readPadded(item.file, part); err != nil {
				return fail(err)
			}
			if _, err := tw.Write(part); err != nil {
				return fail(err)
			}
			left -= int64(len(part))
			total += int64(len(part))
			done(total)
		}
		return nil
	}
	for item := range m.items {
		if err := one(item); err != nil {
			return err
		}
	}
	if err := m.ctx.Err(); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return out.Flush()
}

// writeExtents writes a file with holes; total counts the bytes of all files.
func (m *mktar) writeExtents(w io.Writer, item packItem, total *int64, done func(int64)) error {
	stored, err := writeSparseHeader(w, item.header, item.sparse)
	if err != nil {
		return err
	}
	buf := make([]byte, 512<<10)
	for _, e := range item.sparse {
		if _, err := item.file.Seek(e.off, io.SeekStart); err != nil {
			return err
		}
		for left := e.size; left > 0; {
			if err := m.ctx.Err(); err != nil {
				return err
			}
			part := buf[:min(left, int64(len(buf)))]
			if err := readPadded(item.file, part); err != nil {
				return err
			}
			if _, err := w.Write(part); err != nil {
				return err
			}
			left -= int64(len(part))
			*total += int64(len(part))
			done(*total)
		}
	}
	_, err = io.WriteString(w, padding(stored))
	return err
}

// readPadded fills b: a file that shrank meanwhile is filled up with zeros, and
// one that grew is cut by its reader, because its size is written already.
func readPadded(f io.Reader, b []byte) error {
	n, err := io.ReadFull(f, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		clear(b[n:])
		return nil
	}
	return err
}

func newHeader(name string, st *unix.Stat_t) *tar.Header {
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	if me := os.Geteuid(); me != 0 { // all is root's that an import has given to the user
		if h.Uid == me {
			h.Uid = 0
		}
		if h.Gid == os.Getegid() {
			h.Gid = 0
		}
	}
	return h
}

// node makes the entry for one file, and those below a directory.
func (m *mktar) node(root, node *os.File, name string) error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("pack %q: %w", shorten(name), err) }
	var st unix.Stat_t
	if err := unix.Fstat(int(node.Fd()), &st); err != nil {
		return fail(err)
	}
	h := newHeader(name, &st)
	kind := st.Mode & unix.S_IFMT
	if m.layer && isWhiteout(st) {
		return m.mark(path.Join(path.Dir(name), whiteout+path.Base(name)), h.ModTime)
	}
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := m.links[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return m.put(packItem{header: h})
		}
		m.links[id] = name
	}
	switch kind {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
		return m.regular(node, h, st.Blocks*512 < st.Size)
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
	hides := false
	if kind != unix.S_IFLNK {
		h.PAXRecords = records(sys.FDPath(node))
		hides = m.layer && h.PAXRecords[xattrRecord+overlayOpaque] == "y"
		m.strip(h)
	}
	if err := m.put(packItem{header: h}); err != nil {
		return err
	}
	if hides {
		if err := m.mark(path.Join(name, opaque), h.ModTime); err != nil {
			return err
		}
	}
	if kind == unix.S_IFDIR {
		return m.children(root, node, name)
	}
	return nil
}

// regular makes the entry for a regular file, which is only looked at so far:
// opening anything else could do something. It may have holes.
func (m *mktar) regular(node *os.File, h *tar.Header, holes bool) error {
	fail := func(err error) error { return fmt.Errorf("pack %q: %w", shorten(h.Name), err) }
	file, err := sys.Reopen(node, unix.O_RDONLY)
	if err != nil {
		return fail(err)
	}
	h.PAXRecords = recordsOf(fdAttributes(int(file.Fd())))
	m.strip(h)
	if holes && h.Size >= sparseMin {
		if list := extents(file, h.Size); list != nil {
			return m.put(packItem{header: h, file: file, sparse: list})
		}
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			_ = file.Close()
			return fail(err)
		}
	}
	if h.Size > packSmall {
		return m.put(packItem{header: h, file: file})
	}
	defer func() { _ = file.Close() }()
	return m.whole(h, file)
}

// small makes the entry for what was a regular file when its directory was read, if
// it is one still, and a small one with one name and no holes, as most files are. It
// does with half of the system calls that node needs for any.
func (m *mktar) small(dir int, base, name string) (done bool, err error) {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, nil //nolint:nilerr // node tells what is wrong
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink > 1 || st.Size > packSmall || st.Blocks*512 < st.Size {
		return false, nil
	}
	if err := m.ctx.Err(); err != nil {
		return false, err
	}
	h := newHeader(name, &st)
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	h.PAXRecords = recordsOf(fdAttributes(fd))
	m.strip(h)
	return true, m.whole(h, descriptor(fd))
}

// descriptor reads from an open file, which stays its owner's.
type descriptor int

func (d descriptor) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(d), b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// whole hands an entry to the writer with all of its content, which is small.
func (m *mktar) whole(h *tar.Header, content io.Reader) error {
	if h.Size == 0 {
		return m.put(packItem{header: h})
	}
	var data []byte
	select {
	case data = <-m.free:
	case <-m.ctx.Done():
		return m.ctx.Err()
	}
	if data == nil {
		data = make([]byte, packSmall)
	}
	item := packItem{header: h, data: data}
	if err := readPadded(content, data[:h.Size]); err != nil {
		m.release(item)
		return fmt.Errorf("pack %q: %w", shorten(h.Name), err)
	}
	return m.put(item)
}

// mark makes an empty file that says something about the layers below.
func (m *mktar) mark(name string, at time.Time) error {
	return m.put(packItem{header: &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: at, Format: tar.FormatPAX}})
}

// strip takes out of a layer's header what is overlayfs's, or ours.
func (m *mktar) strip(h *tar.Header) {
	if m.layer {
		disarm(h, armedInLayers)
	}
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
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return fmt.Errorf("pack %q: %w", shorten(name), err)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		child := e.Name()
		if e.Type().IsRegular() {
			done, err := m.small(fd, child, name+"/"+child)
			if err != nil {
				return err
			}
			if done {
				continue
			}
		}
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

// attributes reads the extended attributes of some file, as llistxattr(2) and
// lgetxattr(2) do.
type attributes struct {
	list func(names []byte) (int, error)
	get  func(name string, value []byte) (int, error)
}

func fdAttributes(fd int) attributes {
	return attributes{
		list: func(names []byte) (int, error) { return unix.Flistxattr(fd, names) },
		get:  func(name string, value []byte) (int, error) { return unix.Fgetxattr(fd, name, value) },
	}
}

// records is recordsOf for a path.
func records(path string) map[string]string {
	return recordsOf(attributes{
		list: func(names []byte) (int, error) { return unix.Listxattr(path, names) },
		get:  func(name string, value []byte) (int, error) { return unix.Getxattr(path, name, value) },
	})
}

// recordsOf reads the extended attributes and ACLs of a file for its header.
func recordsOf(file attributes) map[string]string {
	var few [1024]byte
	names := few[:]
	n, err := file.list(names)
	if errors.Is(err, unix.ERANGE) {
		names = make([]byte, xattrListMax)
		n, err = file.list(names)
	}
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
		size, err := file.get(name, value)
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
