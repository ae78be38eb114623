// Package treecopy owns copying of files and trees with everything that belongs
// to them: owners, modes, times, extended attributes (ACLs and capabilities are
// some), hard links, holes, device nodes. It works on descriptors only and never
// follows a symlink on either side, so that a tree that changes under it cannot
// lead it elsewhere. It takes no locks and makes no name atomic; callers do.
package treecopy

import (
	"context"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Options of a copy. The zero value makes an exact copy and refuses to touch
// anything that exists already.
type Options struct {
	// Merge lets directories exist already at the destination; their
	// attributes are left as they are.
	Merge bool
	// Replace lets other files exist already; each is replaced when its successor
	// is whole.
	Replace bool
	// Owner maps the owner of each file; nil keeps it.
	Owner func(uid, gid uint32) (uint32, uint32)
	// SameMount leaves directories on which something is mounted empty.
	SameMount bool
	// Workers is how many files are copied at once; 0 means one per CPU, up to 8.
	Workers int
	// Enter is called first on the thread of each worker, which runs nothing else.
	Enter func() error
	// Progress is told of each piece copied, in bytes, from many goroutines.
	Progress func(bytes int64)
}

// Copy copies what is in the open directory src into the open directory dst,
// and then the attributes of src itself. Both descriptors stay the caller's and
// must be open for reading. It stops at the first error; what has been copied by
// then stays, but for files that are not whole. dst may lie within src: then it is
// left out.
func Copy(ctx context.Context, src, dst *os.File, opts Options) error {
	root := &dir{src: int(src.Fd()), dst: int(dst.Fd()), keep: true, existed: opts.Merge}
	if err := unix.Fstat(root.src, &root.st); err != nil {
		return &os.PathError{Op: "stat", Path: src.Name(), Err: err}
	}
	if _, err := src.Seek(0, 0); err != nil {
		return &os.PathError{Op: "seek", Path: src.Name(), Err: err}
	}
	err := newCopier(ctx, opts, root).run()
	runtime.KeepAlive(src) // the copy has worked on its bare descriptors
	runtime.KeepAlive(dst)
	return err
}

// CopyEntry copies the one file name of the directory srcDir, of whatever type,
// to dstName in dstDir.
func CopyEntry(ctx context.Context, srcDir *os.File, name string, dstDir *os.File, dstName string, opts Options) error {
	in := &dir{src: int(srcDir.Fd()), dst: int(dstDir.Fd())}
	defer runtime.KeepAlive(srcDir)
	defer runtime.KeepAlive(dstDir)
	node, st, err := openPath(in.src, name)
	if err != nil {
		return pathError("open", in, name, err)
	}
	defer func() { _ = unix.Close(node) }()
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return newCopier(ctx, opts, in).node(file{in: in, name: dstName, as: dstName, fd: node, st: &st}, &buffers{})
	}
	existed, err := makeDir(in, dstName, opts.Merge)
	if err != nil {
		return err
	}
	from, err := openDir(in.src, name)
	if err != nil {
		return pathError("open", in, name, err)
	}
	src := os.NewFile(uintptr(from), name)
	defer func() { _ = src.Close() }()
	to, err := openDir(in.dst, dstName)
	if err != nil {
		return pathError("open", in, dstName, err)
	}
	dst := os.NewFile(uintptr(to), dstName)
	defer func() { _ = dst.Close() }()
	opts.Merge = existed
	return Copy(ctx, src, dst, opts)
}
