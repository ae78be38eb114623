package treecopy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// inode identifies a file during a copy.
type inode struct{ dev, ino uint64 }

// link is where the first name of a file with several went. The fields below
// ready hold once it is closed.
type link struct {
	ready chan struct{}
	path  string // below the destination root
	to    inode
	err   error
}

// dir is a pair of directories whose entries are being copied. The last of its
// entries to finish sets the attributes of the copy and closes both.
type dir struct {
	parent   *dir
	src, dst int    // open from visit on
	name     string // in the parent
	path     string // of dst below the destination root, "" for the root
	st       unix.Stat_t
	existed  bool
	keep     bool         // the descriptors belong to the caller
	depth    int          // below the root
	pending  atomic.Int64 // pieces of work not finished
}

// maxDepth bounds the nesting of a hostile tree: each level holds descriptors and
// the path to it.
const maxDepth = 1024

// listed is an entry of a directory as reading that tells it.
type listed struct {
	name    string
	regular bool // a regular file, when it was read
}

// work is a piece of a copy: some entries of a directory, or, without any, the
// directory that is still to be read.
type work struct {
	in    *dir
	names []listed
}

// namesAtOnce is how many entries one worker takes: few enough that a large
// directory is shared, many enough that sharing costs nothing.
const namesAtOnce = 32

type copier struct {
	ctx     context.Context
	opts    Options
	root    *dir
	target  inode       // the directory that is written to
	reflink atomic.Bool // cleared when the file systems cannot share extents
	failed  atomic.Bool
	once    sync.Once
	err     error

	mu      sync.Mutex
	more    sync.Cond // work was added, or the last piece is done
	stack   []work    // last in, first out: few directories are open at once
	open    int       // pieces on the stack or in work
	links   map[inode]*link
	workers sync.WaitGroup
}

func newCopier(ctx context.Context, opts Options, root *dir) *copier {
	c := &copier{ctx: ctx, opts: opts, root: root, links: map[inode]*link{}}
	c.more.L = &c.mu
	c.reflink.Store(true)
	return c
}

// run copies the tree below the root.
func (c *copier) run() error {
	var target unix.Stat_t
	if err := unix.Fstat(c.root.dst, &target); err != nil {
		return pathError("stat", c.root, "", err)
	}
	c.target = inode{target.Dev, target.Ino}
	n := c.opts.Workers
	if n <= 0 {
		n = min(runtime.NumCPU(), 8)
	}
	c.root.pending.Store(1)
	c.push(work{in: c.root})
	for range n {
		c.workers.Go(c.worker)
	}
	c.workers.Wait()
	return c.err
}

func (c *copier) worker() {
	if c.opts.Enter != nil {
		runtime.LockOSThread() // the thread ends with the worker
		c.fail(c.opts.Enter())
	}
	buf := &buffers{}
	for {
		w, ok := c.pop()
		if !ok {
			return
		}
		if err := c.ctx.Err(); err != nil {
			c.fail(err)
		}
		if !c.failed.Load() {
			if w.names == nil {
				c.fail(c.visit(w.in, buf))
			} else {
				c.entries(w.in, w.names, buf)
			}
		}
		c.done(w.in)
		c.finished()
	}
}

func (c *copier) push(w ...work) {
	c.mu.Lock()
	c.stack = append(c.stack, w...)
	c.open += len(w)
	c.mu.Unlock()
	if len(w) == 1 {
		c.more.Signal()
	} else {
		c.more.Broadcast()
	}
}

// pop waits for a piece of work; false says that all is done.
func (c *copier) pop() (work, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.stack) == 0 {
		if c.open == 0 {
			return work{}, false
		}
		c.more.Wait()
	}
	w := c.stack[len(c.stack)-1]
	c.stack = c.stack[:len(c.stack)-1]
	return w, true
}

func (c *copier) finished() {
	c.mu.Lock()
	c.open--
	last := c.open == 0
	c.mu.Unlock()
	if last {
		c.more.Broadcast()
	}
}

func (c *copier) fail(err error) {
	if err != nil {
		c.once.Do(func() { c.err = err })
		c.failed.Store(true)
	}
}

// done counts a piece of work on d as finished.
func (c *copier) done(d *dir) {
	for d != nil && d.pending.Add(-1) == 0 {
		if !d.existed && !c.failed.Load() {
			if d.dst >= 0 {
				c.fail(c.attributes(d.src, d.dst, d, &d.st))
			}
		}
		if !d.keep {
			closeAll(d.src, d.dst)
		}
		d = d.parent
	}
}

func closeAll(fds ...int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// visit opens a directory whose copy has been made, and hands out its entries.
func (c *copier) visit(d *dir, buf *buffers) error {
	if d.parent != nil {
		var err error
		if d.dst, err = openDir(d.parent.dst, d.name); err != nil {
			return pathError("open", d.parent, d.name, err)
		}
		if d.src, err = openDir(d.parent.src, d.name); err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
				// Removed meanwhile: there are no attributes to copy.
				if !d.existed {
					_ = unix.Unlinkat(d.parent.dst, d.name, unix.AT_REMOVEDIR)
				}
				d.existed = true
				return nil
			}
			return pathError("open", d.parent, d.name, err)
		}
		if err := unix.Fstat(d.src, &d.st); err != nil {
			return pathError("stat", d.parent, d.name, err)
		}
		if c.opts.SameMount && mountRoot(d.src) {
			return nil
		}
	}
	var chunk []listed
	flush := func() {
		if len(chunk) > 0 {
			d.pending.Add(1)
			c.push(work{in: d, names: chunk})
			chunk = nil
		}
	}
	for {
		n, err := unix.Getdents(d.src, buf.names[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n <= 0 && (err == nil || errors.Is(err, unix.ENOENT)) {
			break // the end, or removed meanwhile
		}
		if err != nil {
			return pathError("read", d, "", err)
		}
		if err := c.ctx.Err(); err != nil {
			return err
		}
		for rest := buf.names[:n]; len(rest) > 0; {
			var e listed
			e, rest = nextEntry(rest)
			if e.name == "." || e.name == ".." {
				continue
			}
			if chunk == nil {
				chunk = make([]listed, 0, namesAtOnce)
			}
			if chunk = append(chunk, e); len(chunk) == namesAtOnce {
				flush()
			}
		}
	}
	flush()
	return nil
}

// nextEntry cuts the first of the entries that getdents64(2) returned.
func nextEntry(buf []byte) (e listed, rest []byte) {
	length := int(binary.NativeEndian.Uint16(buf[16:]))
	raw := buf[19:length]
	if i := bytes.IndexByte(raw, 0); i >= 0 {
		raw = raw[:i]
	}
	return listed{name: string(raw), regular: buf[18] == unix.DT_REG}, buf[length:]
}

// entries copies entries of d; directories are made, and left for later.
func (c *copier) entries(d *dir, names []listed, buf *buffers) {
	var subs []work
	for _, e := range names {
		if c.failed.Load() {
			break
		}
		sub, err := c.entry(d, e, buf)
		if err != nil {
			c.fail(err)
			break
		}
		if sub != nil {
			subs = append(subs, work{in: sub})
		}
	}
	if len(subs) > 0 {
		c.push(subs...)
	}
}

// entry copies one entry of d. For a directory it returns what is to be visited.
func (c *copier) entry(d *dir, e listed, buf *buffers) (*dir, error) {
	open := openPath
	if e.regular {
		open = openRegular
	}
	node, st, err := open(d.src, e.name)
	if e.regular && (errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO)) {
		e.regular = false // it is something else by now
		node, st, err = openPath(d.src, e.name)
	}
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil, nil // removed meanwhile
		}
		return nil, pathError("open", d, e.name, err)
	}
	defer func() { _ = unix.Close(node) }()
	f := file{in: d, name: e.name, as: e.name, fd: node, st: &st, readable: e.regular}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		if c.target == (inode{st.Dev, st.Ino}) {
			return nil, nil // the copy itself
		}
		if d.depth == maxDepth {
			return nil, pathError("descend into", d, e.name, unix.ELOOP)
		}
		existed, err := makeDir(d, e.name, c.opts.Merge)
		if err != nil {
			return nil, err
		}
		sub := &dir{parent: d, src: -1, dst: -1, name: e.name, path: join(d.path, e.name), st: st, existed: existed, depth: d.depth + 1}
		sub.pending.Store(1)
		d.pending.Add(1)
		return sub, nil
	case st.Nlink > 1:
		return nil, c.linked(f, buf)
	}
	return nil, c.node(f, buf)
}

// linked copies a file that has several names: once.
func (c *copier) linked(f file, buf *buffers) error {
	id := inode{f.st.Dev, f.st.Ino}
	c.mu.Lock()
	first, known := c.links[id]
	if !known {
		first = &link{ready: make(chan struct{})}
		c.links[id] = first
	}
	c.mu.Unlock()
	if known {
		<-first.ready // its copier works on it now and waits for nobody
		if first.err != nil {
			return first.err
		}
		return c.hardlink(f.in, f.name, first)
	}
	defer close(first.ready)
	first.path = join(f.in.path, f.name)
	if first.err = c.node(f, buf); first.err != nil {
		return first.err
	}
	var made unix.Stat_t
	if err := unix.Fstatat(f.in.dst, f.name, &made, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		first.err = pathError("stat", f.in, f.name, err)
		return first.err
	}
	first.to = inode{made.Dev, made.Ino}
	return nil
}

// hardlink gives a file that has been copied already another name.
func (c *copier) hardlink(d *dir, name string, first *link) error {
	fd, err := unix.Openat2(c.root.dst, first.path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ELOOP) {
		// The file itself is a symlink: its directory must not be one.
		fd, err = openLinkNode(c.root.dst, first.path)
	}
	if err != nil {
		return pathError("open", d, first.path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return pathError("stat", d, first.path, err)
	}
	if (inode{st.Dev, st.Ino}) != first.to {
		return pathError("link", d, first.path, unix.ESTALE)
	}
	return c.put(d, name, func(as string) error {
		return pathError("link", d, name, unix.Linkat(fd, "", d.dst, as, unix.AT_EMPTY_PATH))
	})
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func pathError(op string, d *dir, name string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: join(d.path, name), Err: err}
}
