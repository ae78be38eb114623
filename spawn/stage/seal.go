package stage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// SealedSelf is this program as nobody can write to it: a machine may reach what
// runs its set-up and its stub init as /proc/1/exe. It is the program's file seen
// through an overlay that has nothing to write to, or a copy in memory where the
// kernel makes no such overlay. The copy is made meanwhile: the returned function
// waits for it. The caller closes the file.
func SealedSelf() func() (*os.File, error) {
	if f, err := overlaidSelf(); err == nil {
		return func() (*os.File, error) { return f, nil }
	}
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result, 1)
	// Not on the caller's thread, which may be in another mount namespace by then.
	go func() {
		f, err := copiedSelf()
		done <- result{f, err}
	}()
	return sync.OnceValues(func() (*os.File, error) {
		r := <-done
		return r.f, r.err
	})
}

// errNotSelf is when the program's name no longer leads to the program.
var errNotSelf = errors.New("program was replaced")

// overlaidSelf opens the program through a read-only overlay of its directory,
// attached nowhere. Layers are two because the kernel takes no fewer without an
// upper one; the second is empty.
func overlaidSelf() (*os.File, error) {
	name, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	dir, err := unix.Open(filepath.Dir(name), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Dir(name), Err: err}
	}
	defer unix.Close(dir)
	empty, err := newFS("tmpfs", "machine-spawn", readonly|nosuid|nodev|noexec)
	if err != nil {
		return nil, err
	}
	defer unix.Close(empty)
	m, err := newFS("overlay", "machine-spawn", readonly|nosuid|nodev,
		option{"lowerdir", procFD(dir) + ":" + procFD(empty)}, option{"xino", "off"})
	if err != nil {
		return nil, err
	}
	defer unix.Close(m)
	fd, err := unix.Openat(m, filepath.Base(name), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), "machine-spawn")
	var self, seen unix.Stat_t
	err = errors.Join(unix.Stat("/proc/self/exe", &self), unix.Fstat(fd, &seen))
	if err == nil && !sameProgram(&self, &seen) {
		err = errNotSelf
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// sameProgram tells whether a file seen through an overlay, which has a device
// number of its own, is the program, and one that any user can execute: the root
// of a user namespace has to.
func sameProgram(self, seen *unix.Stat_t) bool {
	const readable = 0o555
	return self.Ino == seen.Ino && self.Size == seen.Size && self.Mtim == seen.Mtim && self.Ctim == seen.Ctim && seen.Mode&readable == readable
}

// copiedSelf is the program in memory, sealed.
func copiedSelf() (*os.File, error) {
	src, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("machine-spawn", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|mfdExec)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("machine-spawn", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "machine-spawn")
	for left := st.Size(); left > 0; {
		n, err := unix.Sendfile(fd, int(src.Fd()), nil, int(left))
		if err != nil || n == 0 {
			_ = f.Close()
			return nil, fmt.Errorf("copy program into memory: %w", errors.Join(err, unix.EIO))
		}
		left -= int64(n)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("seal program: %w", err)
	}
	return f, nil
}

// mfdExec is MFD_EXEC of memfd_create(2), Linux 6.3.
const mfdExec = 0x10
