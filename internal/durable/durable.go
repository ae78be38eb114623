// Package durable owns getting a tree that was just made onto the disk before it
// gets its name. On ext4 it writes the tree's own files and the journal; the
// whole file system, with whatever else is dirty on it, only where it must. It
// makes and renames nothing.
package durable

import (
	"errors"
	"io"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// ext4Magic is EXT4_SUPER_MAGIC (statfs(2)); ext2 and ext3 have the same number
// and are served by the same driver.
const ext4Magic = 0xef53

// OwnFiles says whether the file system of fd lets Tree do without writing all
// of it: one whose journal, once committed, covers each file whose pages have
// been written (ext4, data=ordered).
func OwnFiles(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == ext4Magic
}

// Start makes the kernel begin to write a file that is complete, and does not
// wait for it. It is a hint: what goes wrong shows in Tree.
func Start(fd int) {
	_ = unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
}

// Tree returns when all that is below dir, an open directory, is on the disk.
func Tree(dir *os.File) error {
	if !OwnFiles(int(dir.Fd())) {
		return os.NewSyscallError("syncfs", unix.Syncfs(int(dir.Fd())))
	}
	w := &waiter{dirs: make(chan *os.File, 64)}
	for range max(2, min(runtime.NumCPU(), 4)) {
		w.group.Go(func() {
			for d := range w.dirs {
				w.fail(w.files(d))
			}
		})
	}
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		close(w.dirs)
		w.group.Wait()
		return &os.PathError{Op: "open", Path: dir.Name(), Err: err}
	}
	w.fail(w.walk(os.NewFile(uintptr(fd), dir.Name())))
	close(w.dirs)
	w.group.Wait()
	if w.err != nil {
		return w.err
	}
	// A change made now belongs to the running transaction, which is not older
	// than those of the files; syncing it commits them all.
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return os.NewSyscallError("stat", err)
	}
	if err := unix.Fchmod(int(dir.Fd()), st.Mode&0o7777); err != nil {
		return os.NewSyscallError("chmod", err)
	}
	return dir.Sync()
}

type waiter struct {
	dirs  chan *os.File
	group sync.WaitGroup
	once  sync.Once
	err   error
}

func (w *waiter) fail(err error) {
	if err != nil {
		w.once.Do(func() { w.err = err })
	}
}

// entries reads the names of one kind in an open directory.
func entries(d *os.File, want func(os.FileMode) bool) ([]string, error) {
	if _, err := d.Seek(0, 0); err != nil {
		return nil, err
	}
	var names []string
	for {
		list, err := d.ReadDir(1024)
		for _, e := range list {
			if want(e.Type()) {
				names = append(names, e.Name())
			}
		}
		if len(list) == 0 {
			if err != nil && !errors.Is(err, io.EOF) {
				return names, err
			}
			return names, nil
		}
	}
}

// walk hands out d, which it takes over, and the directories below.
func (w *waiter) walk(d *os.File) error {
	names, err := entries(d, os.FileMode.IsDir)
	if err != nil {
		_ = d.Close()
		return err
	}
	fail := func(err error) error {
		_ = d.Close()
		return err
	}
	for _, name := range names {
		fd, err := unix.Openat(int(d.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
		if err != nil {
			return fail(&os.PathError{Op: "open", Path: name, Err: err})
		}
		if err := w.walk(os.NewFile(uintptr(fd), name)); err != nil {
			return fail(err)
		}
	}
	w.dirs <- d
	return nil
}

// files waits for the files of d, and closes it.
func (w *waiter) files(d *os.File) error {
	defer func() { _ = d.Close() }()
	names, err := entries(d, os.FileMode.IsRegular)
	if err != nil {
		return err
	}
	// The first round starts what has not been started, so that the second waits
	// for all of them at once.
	for _, flags := range []int{unix.SYNC_FILE_RANGE_WRITE, unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER} {
		for _, name := range names {
			fd, err := unix.Openat(int(d.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return &os.PathError{Op: "open", Path: name, Err: err}
			}
			err = unix.SyncFileRange(fd, 0, 0, flags)
			_ = unix.Close(fd)
			if err != nil {
				return &os.PathError{Op: "sync", Path: name, Err: err}
			}
		}
	}
	return nil
}
