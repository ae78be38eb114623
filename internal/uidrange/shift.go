package uidrange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// busyBase marks the owner of a tree's root while the tree is being rewritten: a
// tree that was left half-way is recognised and finished.
const busyBase = 0xFFFE0000

// ErrReadOnly says that the tree cannot be rewritten where it is.
var ErrReadOnly = errors.New("file system is read-only")

// Shift gives everything in the tree at rootfd to the range at base: each UID and
// GID keeps its low 16 bits, in owners, in POSIX ACLs and in file capabilities.
// A tree that is there already is left alone at the cost of one fstat. Mounts in
// the tree are not entered. After an error or a crash the next Shift goes on.
//
// Rootfd must be a directory; O_PATH will do; it stays the caller's. The tree must
// not be in use.
func Shift(ctx context.Context, rootfd int, base uint32) error {
	if base&0xFFFF != 0 || base >= busyBase {
		return fmt.Errorf("shift ownership to %d: not the start of a range", base)
	}
	// An open file of our own: the caller's offset may be anywhere.
	rootfd, err := unix.Openat(rootfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("shift ownership: %w", os.NewSyscallError("openat", err))
	}
	defer unix.Close(rootfd)
	var st unix.Stat_t
	if err := unix.Fstat(rootfd, &st); err != nil {
		return fmt.Errorf("shift ownership: %w", os.NewSyscallError("fstat", err))
	}
	if (st.Uid^base)>>16 == 0 && (st.Gid^base)>>16 == 0 {
		return nil
	}
	if (st.Uid^st.Gid)>>16 != 0 {
		return fmt.Errorf("shift ownership: root is owned by UID %d and GID %d, which are not in one range", st.Uid, st.Gid)
	}
	var vfs unix.Statfs_t
	if err := unix.Fstatfs(rootfd, &vfs); err != nil {
		return fmt.Errorf("shift ownership: %w", os.NewSyscallError("fstatfs", err))
	}
	if vfs.Flags&unix.ST_RDONLY != 0 {
		return fmt.Errorf("shift ownership: %w", ErrReadOnly)
	}
	if apiFS(int64(vfs.Type)) {
		return fmt.Errorf("shift ownership: root is a kernel file system")
	}
	if st.Uid>>16 != busyBase>>16 {
		err := unix.Fchown(rootfd, int(uint32(busyBase)|st.Uid&0xFFFF), int(uint32(busyBase)|st.Gid&0xFFFF))
		// In a user namespace the mark is nobody's UID. There the old owner is what
		// tells that not all has been changed.
		if err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("shift ownership: mark root: %w", os.NewSyscallError("fchown", err))
		}
	}
	s := &shifter{base: base, dev: uint64(st.Dev)} // narrower on some architectures
	s.cond = sync.NewCond(&s.mu)
	dup, err := unix.FcntlInt(uintptr(rootfd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("shift ownership: %w", os.NewSyscallError("fcntl", err))
	}
	if err := s.run(ctx, dup); err != nil {
		return fmt.Errorf("shift ownership: %w", err)
	}
	// The mark goes last.
	if err := s.patch("/proc/self/fd/"+strconv.Itoa(rootfd), st.Mode, st.Uid, st.Gid, true, func() error {
		return unix.Fchown(rootfd, s.id(st.Uid), s.id(st.Gid))
	}, func() error {
		return unix.Fchmod(rootfd, st.Mode&0o7777)
	}); err != nil {
		return fmt.Errorf("shift ownership: root: %w", err)
	}
	return nil
}

// shifter walks a tree with a few workers: a stack of open directories, newest
// first, so that few are open at once.
type shifter struct {
	base uint32
	dev  uint64

	links sync.Mutex // hard links are seen more than once, maybe at once

	mu   sync.Mutex
	cond *sync.Cond
	todo []int // directory fds, owned
	busy int
	err  error
}

// maxOpen bounds the queue; beyond it a worker descends by itself.
const maxOpen = 64

func (s *shifter) id(old uint32) int { return int(s.base | old&0xFFFF) }

func (s *shifter) run(ctx context.Context, root int) error {
	s.todo = append(s.todo, root)
	stop := context.AfterFunc(ctx, func() { s.fail(ctx.Err()) })
	defer stop()
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 8) {
		wg.Go(s.work)
	}
	wg.Wait()
	for _, fd := range s.todo {
		unix.Close(fd)
	}
	return s.err
}

func (s *shifter) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.cond.Broadcast()
}

func (s *shifter) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil
}

func (s *shifter) work() {
	for {
		s.mu.Lock()
		for len(s.todo) == 0 && s.busy > 0 && s.err == nil {
			s.cond.Wait()
		}
		if len(s.todo) == 0 || s.err != nil {
			s.cond.Broadcast()
			s.mu.Unlock()
			return
		}
		fd := s.todo[len(s.todo)-1]
		s.todo = s.todo[:len(s.todo)-1]
		s.busy++
		s.mu.Unlock()
		err := s.directory(fd)
		s.mu.Lock()
		s.busy--
		if s.err == nil {
			s.err = err
		}
		s.cond.Broadcast()
		s.mu.Unlock()
	}
}

// directory rewrites the entries of one directory, and closes it.
func (s *shifter) directory(fd int) error {
	f := os.NewFile(uintptr(fd), "directory")
	defer f.Close()
	for {
		names, err := f.Readdirnames(512)
		for _, name := range names {
			if s.failed() {
				return nil
			}
			if err := s.entry(fd, name); err != nil {
				return fmt.Errorf("%q: %w", name, err)
			}
		}
		if err != nil || len(names) == 0 {
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			return nil
		}
	}
}

func (s *shifter) entry(dir int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return os.NewSyscallError("fstatat", err)
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir {
		child, err := unix.Openat2(dir, name, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
		})
		switch {
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOENT):
			return nil // another mount
		case err != nil:
			return os.NewSyscallError("openat2", err)
		}
		if err := s.descend(child, name, st); err != nil {
			return err
		}
	} else if mounted(dir, name) {
		return nil
	}
	if st.Nlink > 1 && !isDir {
		s.links.Lock()
		defer s.links.Unlock()
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return os.NewSyscallError("fstatat", err)
		}
	}
	path := "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
	err := s.patch(path, st.Mode, st.Uid, st.Gid, st.Mode&unix.S_IFMT != unix.S_IFLNK, func() error {
		return unix.Fchownat(dir, name, s.id(st.Uid), s.id(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	}, func() error {
		return unix.Fchmodat(dir, name, st.Mode&0o7777, 0)
	})
	if errors.Is(err, unix.EROFS) {
		return nil // a subvolume that cannot be written
	}
	if kind := st.Mode & unix.S_IFMT; errors.Is(err, unix.EPERM) && (kind == unix.S_IFCHR || kind == unix.S_IFBLK) {
		// On an overlay its node would be made anew, which the device policy of our
		// unit forbids. No machine with a range of its own can open it anyway.
		return nil
	}
	return err
}

// descend queues a directory, or walks it at once when many are waiting.
func (s *shifter) descend(fd int, name string, st unix.Stat_t) error {
	if uint64(st.Dev) != s.dev {
		// a subvolume: it may be a read-only one
		var vfs unix.Statfs_t
		if err := unix.Fstatfs(fd, &vfs); err != nil || vfs.Flags&unix.ST_RDONLY != 0 || apiFS(int64(vfs.Type)) {
			unix.Close(fd)
			return nil
		}
	}
	s.mu.Lock()
	if len(s.todo) < maxOpen {
		s.todo = append(s.todo, fd)
		s.cond.Signal()
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	if err := s.directory(fd); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	return nil
}

// patch rewrites one inode: attributes that chown would lose are read before it
// and written after it.
func (s *shifter) patch(path string, mode, uid, gid uint32, attrs bool, chown, chmod func() error) error {
	var pending []attribute
	if attrs {
		var err error
		if pending, err = s.attributes(path, mode); err != nil {
			return err
		}
	}
	if s.id(uid) != int(uid) || s.id(gid) != int(gid) {
		if err := chown(); err != nil {
			return os.NewSyscallError("fchownat", err)
		}
		if attrs && mode&(unix.S_ISUID|unix.S_ISGID) != 0 { // chown has cleared them
			if err := chmod(); err != nil {
				return os.NewSyscallError("fchmodat", err)
			}
		}
	}
	for _, a := range pending {
		if err := unix.Lsetxattr(path, a.name, a.value, 0); err != nil {
			return &os.PathError{Op: "set " + a.name, Path: path, Err: err}
		}
	}
	return nil
}

// mounted tells whether a file is the root of another mount than its directory.
func mounted(dir int, name string) bool {
	var at, file unix.Statx_t
	if unix.Statx(dir, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &at) != nil ||
		unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &file) != nil {
		return false
	}
	return at.Mnt_id != file.Mnt_id
}

func apiFS(magic int64) bool {
	switch magic {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC,
		unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.SELINUX_MAGIC, unix.BPF_FS_MAGIC, unix.PSTOREFS_MAGIC,
		unix.EFIVARFS_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.NSFS_MAGIC, unix.BINFMTFS_MAGIC, 0x19800202, 0x65735543, 0x62656570:
		return true // the last three: mqueue, fusectl, configfs
	}
	return false
}
