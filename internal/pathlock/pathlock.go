// Package pathlock keeps two programs from using one image at odds: the locks
// that systemd-nspawn, machined and importd take on images and on their names.
//
// They are open file description locks (fcntl_locking(2)), so they bind between
// our programs and stock's, and vanish with their holder. The package never looks
// into an image.
package pathlock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Dir is where the global lock files are.
const Dir = "/run/systemd/nspawn/locks"

// ErrBusy says that somebody else holds the lock.
var ErrBusy = errors.New("currently busy")

// Lock is one or more lock files held. The zero value holds none.
type Lock struct {
	files []*file
}

type file struct {
	f    *os.File
	path string
}

// Locks is a place for locks. Tests use another than Default.
type Locks struct {
	// Dir is made, 0700, when it is missing.
	Dir string
}

// Default are the locks of this host.
var Default = Locks{Dir: Dir}

// Image locks the image (directory, file or block device) at path, for one who
// changes it (exclusive) or one who only reads it. It does not wait: it returns
// ErrBusy. Path must be absolute; symbolic links in it should be resolved, since
// the first lock lies beside it.
//
// The host's own root is nobody's to lock exclusively and is not locked when
// shared. With SYSTEMD_NSPAWN_LOCK=0 in the environment nothing is locked.
func Image(path string, exclusive bool) (*Lock, error) { return Default.Image(path, exclusive) }

// Name locks the image name, as those do who create, rename or remove images.
func Name(name string, exclusive bool) (*Lock, error) { return Default.Name(name, exclusive) }

// Image is the function Image, in l.
func (l Locks) Image(path string, exclusive bool) (*Lock, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("lock image %q: path is not absolute", path)
	}
	path = filepath.Clean(path)
	if off() {
		return &Lock{}, nil
	}
	if path == "/" {
		if exclusive {
			return nil, fmt.Errorf("lock image %q: %w", path, ErrBusy)
		}
		return &Lock{}, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("lock image: %w", &os.PathError{Op: "stat", Path: path, Err: err})
	}
	global := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		global = fmt.Sprintf("block-%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
	case unix.S_IFDIR, unix.S_IFREG:
		global = "inode-" + strconv.FormatUint(uint64(st.Dev), 10) + ":" + strconv.FormatUint(st.Ino, 10)
	default:
		return nil, fmt.Errorf("lock image %q: not a directory, file or block device", path)
	}
	lock := &Lock{}
	// A block device has no place beside it: /dev is no place for files.
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		dir, base := filepath.Split(path)
		local, err := acquire(filepath.Join(dir, ".#"+base+".lck"), exclusive, false)
		switch {
		case err == nil:
			lock.files = append(lock.files, local)
		case !exclusive && (errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)):
			// a vendor's image on a medium that cannot be written; the global lock does
		case errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.ENOSPC):
			// nor has anybody else room for that file, and removing images makes room
		default:
			return nil, fmt.Errorf("lock image %q: %w", path, err)
		}
	}
	if err := l.add(lock, global, exclusive); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock image %q: %w", path, err)
	}
	return lock, nil
}

// Name is the function Name, in l.
func (l Locks) Name(name string, exclusive bool) (*Lock, error) {
	if name == "" || name == "." || name == ".." || len(name) > 240 || filepath.Base(name) != name {
		return nil, fmt.Errorf("lock image name %q: not a file name", name)
	}
	if off() {
		return &Lock{}, nil
	}
	if name == ".host" {
		if exclusive {
			return nil, fmt.Errorf("lock image name %q: %w", name, ErrBusy)
		}
		return &Lock{}, nil
	}
	lock := &Lock{}
	if err := l.add(lock, "name-"+name, exclusive); err != nil {
		return nil, fmt.Errorf("lock image name %q: %w", name, err)
	}
	return lock, nil
}

// File locks one lock file exclusively, made with mode 0600; with wait it blocks
// until the holder lets go, without it returns ErrBusy.
func File(path string, wait bool) (*Lock, error) {
	f, err := acquire(path, true, wait)
	if err != nil {
		return nil, fmt.Errorf("lock %q: %w", path, err)
	}
	return &Lock{files: []*file{f}}, nil
}

func (l Locks) add(lock *Lock, name string, exclusive bool) error {
	if err := os.MkdirAll(l.Dir, 0o700); err != nil {
		return err
	}
	f, err := acquire(filepath.Join(l.Dir, name), exclusive, false)
	if err != nil {
		return err
	}
	lock.files = append(lock.files, f)
	return nil
}

// Close releases the lock and removes its files, unless somebody else shares
// them. Closing twice is harmless.
func (l *Lock) Close() {
	if l == nil {
		return
	}
	for i := len(l.files) - 1; i >= 0; i-- {
		Drop(int(l.files[i].f.Fd()), l.files[i].path)
		_ = l.files[i].f.Close()
	}
	l.files = nil
}

// Drop removes the lock file at path, unless somebody else shares the lock that fd
// holds. Closing fd releases the lock.
func Drop(fd int, path string) {
	// Only the sole holder may remove the file: a later one checks that the
	// file it locked is still there.
	if setLock(fd, unix.F_WRLCK, false) == nil {
		_ = os.Remove(path)
	}
}

// Files returns the open lock files, to be handed to a child that shall keep the
// lock when this process ends. They stay owned by the lock.
func (l *Lock) Files() []*os.File {
	var out []*os.File
	for _, f := range l.files {
		out = append(out, f.f)
	}
	return out
}

func acquire(path string, exclusive, wait bool) (*file, error) {
	kind := int16(unix.F_RDLCK)
	if exclusive {
		kind = unix.F_WRLCK
	}
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW|unix.O_NOCTTY, 0o600)
		if err != nil {
			return nil, err
		}
		if err := setLock(int(f.Fd()), kind, wait); err != nil {
			f.Close()
			return nil, err
		}
		// The last holder may have removed it between the two calls: then we
		// hold a lock that nobody else can see.
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			f.Close()
			return nil, os.NewSyscallError("fstat", err)
		}
		if st.Nlink > 0 {
			return &file{f: f, path: path}, nil
		}
		f.Close()
	}
}

func setLock(fd int, kind int16, wait bool) error {
	cmd := unix.F_OFD_SETLK
	if wait {
		cmd = unix.F_OFD_SETLKW
	}
	for {
		err := unix.FcntlFlock(uintptr(fd), cmd, &unix.Flock_t{Type: kind})
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
			return ErrBusy
		case err != nil:
			return os.NewSyscallError("fcntl", err)
		}
		return nil
	}
}

func off() bool {
	on, err := strconv.ParseBool(os.Getenv("SYSTEMD_NSPAWN_LOCK"))
	return err == nil && !on || os.Getenv("SYSTEMD_NSPAWN_LOCK") == "no"
}
