package transfer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"unsafe"

	"machined/internal/sys"

	"golang.org/x/sys/unix"
)

// maxLate bounds what is remembered of an archive until its end, in bytes: the
// times of directories and, counted on their own, ACLs that name users.
const maxLate = 32 << 20

// Untar unpacks an archive below root, an open directory. Every path is resolved
// as if root were "/", so that no entry can reach outside of it. A later entry
// replaces an earlier one of the same name. Names appear in the order of the
// archive; the contents of small files follow from other goroutines. When
// written is not nil it is told of the size of each regular file that is
// complete, from any goroutine.
func Untar(ctx context.Context, r io.Reader, root *os.File, written func(bytes int64)) error {
	tail := &tailReader{r: r}
	u := newUntar(root, tail, written)
	return u.run(ctx, tail)
}

func newUntar(root *os.File, r io.Reader, written func(bytes int64)) *untar {
	return &untar{root: root, tr: tar.NewReader(r), buf: make([]byte, 256<<10), names: newNames(), fill: newFiller(written), self: ownCreator(), ordinary: os.Geteuid() != 0}
}

func (u *untar) run(ctx context.Context, tail *tailReader) error {
	err := u.all(ctx, tail)
	if fillErr := u.fill.wait(); fillErr != nil {
		err = fillErr // what it caused comes second
	}
	u.forget()
	if err != nil {
		return err
	}
	return u.finish()
}

// all unpacks each entry and reads the archive to its end.
func (u *untar) all(ctx context.Context, tail *tailReader) error {
	entries := 0
	marked := false
	for !u.fill.failed.Load() {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := u.tr.Next()
		if errors.Is(err, io.EOF) {
			marked = tail.zeros >= tarBlock
			if entries == 0 && u.layer == nil && tail.n > emptyMax {
				break // a disk of zeros, or a stream of them without an end
			}
			more, err := u.another(tail)
			if err != nil {
				return archiveError("read archive after entry %d", entries, err)
			}
			if more {
				continue
			}
			break
		}
		switch {
		case err == nil:
		case entries == 0 && (errors.Is(err, tar.ErrHeader) || tail.ended && tail.n < tarBlock):
			return fmt.Errorf("%w: it is no tar archive", ErrArchive)
		case errors.Is(err, tar.ErrHeader):
			return fmt.Errorf("%w: the header after entry %d is broken", ErrArchive, entries)
		default:
			return archiveError("read archive after entry %d", entries, err)
		}
		entries++
		if err := u.entry(ctx, h); err != nil {
			return err
		}
	}
	if u.fill.failed.Load() {
		return nil // wait tells why
	}
	if entries == 0 && u.layer == nil {
		return fmt.Errorf("%w: it holds nothing", ErrArchive)
	}
	if !marked {
		return fmt.Errorf("%w: it ends too early, after entry %d: no end mark", ErrArchive, entries)
	}
	return nil
}

// another looks for a further archive behind the end of one, as stock does, and
// reads all that is left where there is none, so that a broken stream shows.
func (u *untar) another(tail *tailReader) (bool, error) {
	var block [tarBlock]byte
	for {
		n, err := 0, error(nil)
		for n < len(block) && err == nil {
			var more int
			more, err = tail.Read(block[n:])
			n += more
		}
		switch {
		case n > 0 && tail.zeros < int64(n):
			u.tr = tar.NewReader(io.MultiReader(bytes.NewReader(block[:n]), tail))
			return true, nil
		case errors.Is(err, io.EOF):
			return false, nil
		case err != nil:
			return false, err
		}
	}
}

// emptyMax is how many zeros an archive may begin with, in bytes.
const emptyMax = 1 << 20

// tarBlock is the unit of an archive; at least one that is all zero ends it.
const tarBlock = 512

// tailReader counts what has been read, and the zeros at its end.
type tailReader struct {
	r     io.Reader
	n     int64 // bytes read
	zeros int64
	ended bool // and nothing was wrong before
}

func (t *tailReader) Read(b []byte) (int, error) {
	n, err := t.r.Read(b)
	t.n += int64(n)
	t.ended = errors.Is(err, io.EOF)
	i := n
	for i > 0 && b[i-1] == 0 {
		i--
	}
	if i > 0 {
		t.zeros = 0
	}
	t.zeros += int64(n - i)
	return n, err
}

// archiveError keeps the errors of the source as they are and calls all others a bad archive.
func archiveError(format string, arg any, err error) error {
	var source *sourceError
	if errors.As(err, &source) {
		return source
	}
	what := fmt.Sprintf(format, arg)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s: %w: it ends too early", what, ErrArchive)
	}
	return fmt.Errorf("%s: %w: %w", what, ErrArchive, err)
}

// dirTime is what a directory gets when its entries are all made: they would
// change its times, and take over its default ACL.
type dirTime struct {
	path         string
	mtime, atime unix.Timespec
	acl          string
	mode         int64 // -1: it has it already
}

// lateACL is an ACL that names users or groups by name: the numbers are known
// when the tree's own lists of them are there.
type lateACL struct{ path, key, text string }

type untar struct {
	root *os.File
	tr   *tar.Reader
	buf  []byte
	// The directory of the last entry stays open: entries come directory by directory.
	parentPath string
	parent     *os.File
	inherits   inheritance
	self       creator
	dirs       []dirTime
	dirBytes   int
	late       []lateACL
	lateBytes  int
	names      *nameTable
	fill       *filler
	layer      *layer // nil: an archive of its own
	disarmed   string // an attribute that was left out
	ordinary   bool   // not root: no file can be given away, and no device made
	devices    int    // left out for that
}

func (u *untar) forget() {
	if u.parent != nil && u.parent != u.root {
		_ = u.parent.Close()
	}
	u.parent, u.parentPath = nil, ""
}

// split checks the name of an entry and takes it apart. Leading slashes are
// dropped, as by tar(1); ".." is refused.
func split(name string) (dir, base string, err error) {
	clean := strings.TrimLeft(name, "/")
	for part := range strings.SplitSeq(clean, "/") {
		if part == ".." {
			return "", "", fmt.Errorf("%w: entry %q leads out of the tree by \"..\"", ErrArchive, shorten(name))
		}
	}
	if strings.IndexByte(clean, 0) >= 0 {
		return "", "", fmt.Errorf("%w: entry %q has a NUL byte in its name", ErrArchive, shorten(name))
	}
	clean = path.Clean(clean)
	if clean == "." || clean == "" {
		return "", ".", nil
	}
	dir, base = path.Split(clean)
	if len(base) > 255 || len(clean) > 4095 {
		return "", "", fmt.Errorf("%w: entry %q has too long a name", ErrArchive, shorten(name))
	}
	return strings.TrimSuffix(dir, "/"), base, nil
}

func shorten(name string) string {
	if len(name) > 120 {
		return name[:120] + "…"
	}
	return name
}

func (u *untar) makeParents(dir string) (*os.File, error) {
	sofar := ""
	for part := range strings.SplitSeq(dir, "/") {
		holder, err := sys.OpenIn(int(u.root.Fd()), sofar, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return nil, err
		}
		err = unix.Mkdirat(int(holder.Fd()), part, 0o755)
		_ = holder.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, &os.PathError{Op: "mkdir", Path: part, Err: err}
		}
		sofar = path.Join(sofar, part)
	}
	return sys.OpenIn(int(u.root.Fd()), dir, unix.O_RDONLY|unix.O_DIRECTORY)
}

func (u *untar) disarm(h *tar.Header) {
	prefixes := armedInTrees
	if u.layer != nil {
		prefixes = armedInLayers
	}
	if name := disarm(h, prefixes); name != "" {
		u.disarmed = name
	}
}

func (u *untar) entry(ctx context.Context, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader, typeVolume:
		return nil
	case typeDump:
		h.Typeflag = tar.TypeDir
	}
	dir, base, err := split(h.Name)
	if err != nil {
		return err
	}
	fail := func(what string, err error) error {
		return fmt.Errorf("unpack %q: %s: %w", shorten(h.Name), what, err)
	}
	if h.Uid < 0 || h.Uid >= 1<<32-1 || h.Gid < 0 || h.Gid >= 1<<32-1 {
		return fail("owner", fmt.Errorf("%w: user or group id is out of range", ErrArchive))
	}
	if u.ordinary {
		h.Uid, h.Gid = os.Geteuid(), os.Getegid()
		if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
			u.devices++
			return nil
		}
	}
	if u.layer != nil && u.layer.ignored(dir, base) {
		return nil
	}
	u.disarm(h)
	if base == "." {
		if h.Typeflag != tar.TypeDir {
			return fail("root", fmt.Errorf("%w: the root is not a directory", ErrArchive))
		}
		return u.directory(h, u.root, "")
	}
	parent, err := u.openParent(dir)
	if err != nil {
		return fail("directory", err)
	}
	at := int(parent.Fd())
	if u.layer != nil {
		done, err := u.layer.enter(parent, base, h)
		if err != nil {
			return fail("whiteout", err)
		}
		if done {
			return nil
		}
	}
	if h.Typeflag == tar.TypeDir {
		return u.makeDirectory(h, parent, dir, base)
	}
	u.names.learn(h)
	if err := u.postpone(h, path.Join(dir, base)); err != nil {
		return fail("set attributes", err)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, '\x00', tar.TypeCont:
		return u.regular(ctx, h, at, base)
	}
	if err := makeRoom(at, base); err != nil {
		return fail("replace", err)
	}
	switch h.Typeflag {
	case tar.TypeLink:
		if err := u.hardlink(h.Linkname, at, base); err != nil {
			return fail("link", err)
		}
		return nil
	case tar.TypeSymlink:
		if h.Linkname == "" {
			return fail("symlink", fmt.Errorf("%w: it has no target", ErrArchive))
		}
		if err := unix.Symlinkat(h.Linkname, at, base); err != nil {
			return fail("symlink", err)
		}
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		mode := uint32(unix.S_IFIFO)
		switch h.Typeflag {
		case tar.TypeChar:
			mode = unix.S_IFCHR
		case tar.TypeBlock:
			mode = unix.S_IFBLK
		}
		if err := unix.Mknodat(at, base, mode|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))); err != nil {
			return fail("mknod", err)
		}
	default:
		return fail("entry", fmt.Errorf("%w: unknown type %q", ErrArchive, h.Typeflag))
	}
	node, err := openNode(at, base, unix.O_PATH)
	if err != nil {
		return fail("open", err)
	}
	defer func() { _ = node.Close() }()
	if err := setAttributes(node, h); err != nil {
		return fail("set attributes", err)
	}
	return nil
}

// Types of GNU tar (its manual, "Standard Format") that archive/tar has no names for: the name of a
// volume, and a directory with a list of its entries, of an incremental archive.
const (
	typeVolume = 'V'
	typeDump   = 'D'
)

func openNode(at int, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(at, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// makeRoom removes what an earlier entry left under a name. A directory that has
// entries stays, and is an error.
func makeRoom(at int, base string) error {
	err := unix.Unlinkat(at, base, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		err = unix.Unlinkat(at, base, unix.AT_REMOVEDIR)
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTEMPTY):
		return fmt.Errorf("%w: there is a directory of that name, which has entries", ErrArchive)
	}
	return err
}

// withoutPath is what went wrong in an error that names a path which the reader
// knows already, or never heard of.
func withoutPath(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

func (u *untar) makeDirectory(h *tar.Header, parent *os.File, dir, base string) error {
	at := int(parent.Fd())
	fail := func(err error) error { return fmt.Errorf("unpack %q: mkdir: %w", shorten(h.Name), err) }
	err := unix.Mkdirat(at, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err := unix.Fstatat(at, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fail(err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err := unix.Unlinkat(at, base, 0); err != nil {
				return fail(err)
			}
			err = unix.Mkdirat(at, base, 0o700)
		} else {
			err = nil
		}
		if err != nil {
			return fail(err)
		}
	} else if err != nil {
		return fail(err)
	}
	made, err := openNode(at, base, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fail(err)
	}
	err = u.directory(h, made, path.Join(dir, base))
	if err != nil {
		_ = made.Close()
		return err
	}
	// Its entries come next, most likely.
	u.forget()
	u.enter(made, path.Join(dir, base))
	return nil
}

func (u *untar) directory(h *tar.Header, dir *os.File, name string) error {
	u.names.learn(h)
	if err := u.postpone(h, name); err != nil {
		return fmt.Errorf("unpack %q: set attributes: %w", shorten(h.Name), err)
	}
	mode := int64(-1)
	if u.ordinary { // its entries need to get in
		mode = h.Mode
		h.Mode |= 0o700
	}
	acl := strings.Clone(h.PAXRecords[aclDefault])
	delete(h.PAXRecords, aclDefault)
	if err := setAttributes(dir, h); err != nil {
		return fmt.Errorf("unpack %q: set attributes: %w", shorten(h.Name), err)
	}
	if u.dirBytes += len(name) + len(acl) + int(unsafe.Sizeof(dirTime{})); u.dirBytes > maxLate {
		// Those so far get their times now: what an archive adds to them later changes them.
		if err := u.finishDirectories(); err != nil {
			return err
		}
	}
	u.dirs = append(u.dirs, dirTime{path: strings.Clone(name), mtime: timespec(h.ModTime), atime: timespec(h.AccessTime), acl: acl, mode: mode})
	return nil
}

// postpone takes ACLs out of a header that cannot be set yet.
func (u *untar) postpone(h *tar.Header, name string) error {
	for _, key := range []string{aclAccess, aclDefault} {
		text, ok := h.PAXRecords[key]
		if !ok || !namesIn(text) {
			continue
		}
		delete(h.PAXRecords, key)
		if u.lateBytes += len(name) + len(text) + int(unsafe.Sizeof(lateACL{})); u.lateBytes > maxLate {
			return fmt.Errorf("%w: too many ACLs that name users", ErrArchive)
		}
		u.late = append(u.late, lateACL{path: strings.Clone(name), key: key, text: strings.Clone(text)})
	}
	return nil
}

func (u *untar) hardlink(target string, at int, base string) error {
	dir, name, err := split(target)
	if err != nil {
		return err
	}
	holder, err := sys.OpenIn(int(u.root.Fd()), dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("%w: its target %q does not exist", ErrArchive, shorten(target))
	}
	defer func() { _ = holder.Close() }()
	err = unix.Linkat(int(holder.Fd()), name, at, base, 0)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: its target %q does not exist", ErrArchive, shorten(target))
	}
	return err
}

// finish gives files the ACLs that name users, and directories what making
// their entries has changed.
func (u *untar) finish() error {
	if len(u.late) > 0 {
		u.names.read(u.root)
	}
	for _, l := range u.late {
		text, ok := u.names.resolve(l.text)
		if !ok {
			continue // a user that neither the tree nor the archive knows has no right
		}
		if err := u.fix(l.path, func(path string) error { return setRecord(pathXattr(path), l.key, text) }); err != nil {
			return err
		}
	}
	return u.finishDirectories()
}

// fix changes what has a name in the tree, unless a later entry has replaced it.
func (u *untar) fix(name string, do func(path string) error) error {
	f, err := sys.OpenHow(int(u.root.Fd()), name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW})
	if err != nil {
		return nil //nolint:nilerr // replaced
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	if err := do(sys.FDPath(f)); err != nil {
		return fmt.Errorf("unpack %q: set attributes: %w", shorten(name), err)
	}
	return nil
}

// finishDirectories gives the directories so far their times, the inner ones first.
func (u *untar) finishDirectories() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		err := u.fix(d.path, func(path string) error {
			if d.acl != "" {
				if err := setRecord(pathXattr(path), aclDefault, d.acl); err != nil {
					return err
				}
			}
			if d.mode >= 0 {
				if err := unix.Chmod(path, uint32(d.mode)&0o7777); err != nil {
					return os.NewSyscallError("chmod", err)
				}
			}
			return os.NewSyscallError("utimensat", unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{d.atime, d.mtime}, 0))
		})
		if err != nil {
			return err
		}
	}
	u.dirs, u.dirBytes = u.dirs[:0], 0
	return nil
}
