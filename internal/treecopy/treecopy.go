// Package treecopy owns copying of files and trees with everything that belongs
// to them: owners, modes, times, extended attributes (ACLs and capabilities are
// some), hard links, holes, device nodes. It works on descriptors only and never
// follows a symlink on either side, so that a tree that changes under it cannot
// lead it elsewhere. It takes no locks and makes no name atomic; callers do.
package treecopy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Options of a copy. The zero value makes an exact copy and refuses to touch
// anything that exists already.
type Options struct {
	// Merge lets directories exist already at the destination; their
	// attributes are left as they are.
	Merge bool
	// Replace lets other files exist already; they are replaced.
	Replace bool
	// Owner maps the owner of each file; nil keeps it.
	Owner func(uid, gid uint32) (uint32, uint32)
	// SameMount leaves directories on which something is mounted empty.
	SameMount bool
	// Workers is how many files are copied at once; 0 means one per CPU, up to 8.
	Workers int
	// Progress is told of each piece copied, in bytes, from many goroutines.
	Progress func(bytes int64)
	// Settled is told of each regular file that is complete, open for writing
	// under fd, from many goroutines.
	Settled func(fd int)
}

// inode identifies a file during a copy.
type inode struct{ dev, ino uint64 }

// link remembers where the first name of a file with several went.
type link struct {
	path string // below the destination root
	to   inode
}

// dir is a pair of open directories whose entries are being copied. The last
// of its entries to finish sets the attributes of the copy and closes both.
type dir struct {
	parent   *dir
	src, dst *os.File
	path     string // of dst below the destination root, "" for the root
	st       unix.Stat_t
	existed  bool
	keep     bool         // the descriptors belong to the caller
	pending  atomic.Int64 // entries not finished, plus one for the walk itself
}

type copier struct {
	opts    Options
	root    *dir
	links   map[inode]link // walk goroutine only
	jobs    chan job
	reflink atomic.Bool // cleared when the file systems cannot share extents
	failed  atomic.Bool
	once    sync.Once
	err     error
}

type job struct {
	in   *dir
	name string
	src  *os.File // O_PATH
	st   unix.Stat_t
}

// Copy copies what is in the open directory src into the open directory dst,
// and then the attributes of src itself. Both descriptors stay the caller's and
// must be open for reading. It stops at the first error; what has been copied by
// then stays.
func Copy(ctx context.Context, src, dst *os.File, opts Options) error {
	root := &dir{src: src, dst: dst, keep: true, existed: opts.Merge}
	if err := unix.Fstat(int(src.Fd()), &root.st); err != nil {
		return &os.PathError{Op: "stat", Path: src.Name(), Err: err}
	}
	c, wait := start(ctx, opts)
	c.root = root
	root.pending.Store(1)
	c.walk(ctx, root)
	c.done(root)
	return wait()
}

// CopyEntry copies the one file name of the directory srcDir, of whatever type,
// to dstName in dstDir.
func CopyEntry(ctx context.Context, srcDir *os.File, name string, dstDir *os.File, dstName string, opts Options) error {
	src, st, err := openPath(srcDir, name)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		defer func() { _ = src.Close() }()
		c, wait := start(ctx, opts)
		c.fail(c.node(ctx, &dir{src: srcDir, dst: dstDir}, dstName, src, &st))
		return wait()
	}
	_ = src.Close()
	from, err := openDir(srcDir, name)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	existed, err := makeDir(dstDir, dstName, opts.Merge)
	if err != nil {
		return err
	}
	to, err := openDir(dstDir, dstName)
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }()
	opts.Merge = opts.Merge && existed
	if existed {
		opts.Merge = true
	}
	return Copy(ctx, from, to, opts)
}

func start(ctx context.Context, opts Options) (*copier, func() error) {
	c := &copier{opts: opts, links: map[inode]link{}, jobs: make(chan job, 64)}
	c.reflink.Store(true)
	workers := opts.Workers
	if workers <= 0 {
		workers = min(runtime.NumCPU(), 8)
	}
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for j := range c.jobs {
				if !c.failed.Load() {
					c.fail(c.node(ctx, j.in, j.name, j.src, &j.st))
				}
				_ = j.src.Close()
				c.done(j.in)
			}
		})
	}
	return c, func() error {
		close(c.jobs)
		group.Wait()
		return c.err
	}
}

func (c *copier) fail(err error) {
	if err != nil {
		c.once.Do(func() { c.err = err })
		c.failed.Store(true)
	}
}

// done counts an entry of d as finished.
func (c *copier) done(d *dir) {
	for d != nil && d.pending.Add(-1) == 0 {
		if !d.existed && !c.failed.Load() {
			c.fail(c.attributes(d.src, d.dst, &d.st))
		}
		if !d.keep {
			_ = d.src.Close()
			_ = d.dst.Close()
		}
		d = d.parent
	}
}

// walk hands out the entries of d and goes down its directories.
func (c *copier) walk(ctx context.Context, d *dir) {
	for !c.failed.Load() {
		if err := ctx.Err(); err != nil {
			c.fail(fmt.Errorf("copy %q: %w", d.src.Name(), err))
			return
		}
		names, err := d.src.Readdirnames(512)
		for _, name := range names {
			if c.failed.Load() {
				return
			}
			if err := c.entry(ctx, d, name); err != nil {
				c.fail(err)
				return
			}
		}
		if len(names) == 0 {
			if err != nil && !errors.Is(err, errEOF) {
				c.fail(err)
			}
			return
		}
	}
}

func (c *copier) entry(ctx context.Context, d *dir, name string) error {
	src, st, err := openPath(d.src, name)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil // removed meanwhile
		}
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		defer func() { _ = src.Close() }()
		return c.subdir(ctx, d, name, src, st)
	}
	if st.Nlink > 1 {
		defer func() { _ = src.Close() }()
		id := inode{st.Dev, st.Ino}
		if first, ok := c.links[id]; ok {
			return c.hardlink(d, name, first)
		}
		if err := c.node(ctx, d, name, src, &st); err != nil {
			return err
		}
		var made unix.Stat_t
		if err := unix.Fstatat(int(d.dst.Fd()), name, &made, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return pathError("stat", d, name, err)
		}
		c.links[id] = link{path: join(d.path, name), to: inode{made.Dev, made.Ino}}
		return nil
	}
	d.pending.Add(1)
	c.jobs <- job{in: d, name: name, src: src, st: st}
	return nil
}

func (c *copier) subdir(ctx context.Context, d *dir, name string, node *os.File, st unix.Stat_t) error {
	existed, err := makeDir(d.dst, name, c.opts.Merge)
	if err != nil {
		return err
	}
	dst, err := openDir(d.dst, name)
	if err != nil {
		return err
	}
	src, err := openDir(d.src, name)
	if err != nil {
		_ = dst.Close()
		return err
	}
	sub := &dir{parent: d, src: src, dst: dst, path: join(d.path, name), st: st, existed: existed}
	d.pending.Add(1)
	sub.pending.Store(1)
	if !c.opts.SameMount || !mountRoot(node) {
		c.walk(ctx, sub)
	}
	c.done(sub)
	return nil
}

// hardlink gives a file that has been copied already another name.
func (c *copier) hardlink(d *dir, name string, first link) error {
	fd, err := unix.Openat2(int(c.root.dst.Fd()), first.path, &unix.OpenHow{
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
	if c.opts.Replace {
		_ = unix.Unlinkat(int(d.dst.Fd()), name, 0)
	}
	if err := unix.Linkat(fd, "", int(d.dst.Fd()), name, unix.AT_EMPTY_PATH); err != nil {
		return pathError("link", d, name, err)
	}
	return nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func pathError(op string, d *dir, name string, err error) error {
	return &os.PathError{Op: op, Path: join(d.path, name), Err: err}
}
