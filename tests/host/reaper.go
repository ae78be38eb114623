package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// reapSpec names what a reaper removes.
type reapSpec struct {
	Cgroup string // killed and removed with all below; empty: none
	Dir    string // removed, with the loop devices whose files are in it
}

// reaper is a process that removes things when told to, or when this process is gone.
type reaper struct {
	cmd  *exec.Cmd
	hold io.Closer // write end of its pipe: closing it is the order
}

func startReaper(s reapSpec) (*reaper, error) {
	arg, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{reaperArg, string(arg)}, Stdin: r, Stderr: os.Stderr}
	// A session of its own: Ctrl-C is not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, err
	}
	return &reaper{cmd: cmd, hold: w}, nil
}

// finish has the reaper do its work and waits for it.
func (r *reaper) finish() error {
	return errors.Join(r.hold.Close(), r.cmd.Wait())
}

// reap is the reaper's whole life.
func reap(arg string) error {
	var s reapSpec
	if err := json.Unmarshal([]byte(arg), &s); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	var all error
	if s.Cgroup != "" {
		all = errors.Join(all, killCgroup(s.Cgroup), removeCgroup(s.Cgroup))
	}
	return errors.Join(all, detachLoops(s.Dir), removeTree(s.Dir))
}

// killCgroup kills everything in a cgroup and waits until it is empty.
func killCgroup(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	events, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		return err
	}
	defer events.Close()
	deadline := time.Now().Add(20 * time.Second)
	buf := make([]byte, 256)
	for {
		n, err := events.ReadAt(buf, 0)
		if err != nil && err != io.EOF {
			return err
		}
		if strings.Contains(string(buf[:n]), "populated 0") {
			return nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("empty cgroup %q: processes left after 20 s", dir)
		}
		// The kernel wakes POLLPRI when a value in cgroup.events changes.
		fds := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, int(min(left, time.Second).Milliseconds())); err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
	}
}

// removeCgroup removes a cgroup and all below it. A cgroup can be busy for a
// moment after its last process is gone, and nothing tells when it no longer is.
func removeCgroup(dir string) error {
	return retry(5*time.Second, func() error {
		var dirs []string
		filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := unix.Rmdir(dirs[i]); err != nil && err != unix.ENOENT {
				return &os.PathError{Op: "rmdir", Path: dirs[i], Err: err}
			}
		}
		return nil
	})
}

// retry calls f until it succeeds or the time is over.
func retry(d time.Duration, f func() error) error {
	deadline := time.Now().Add(d)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// detachLoops detaches loop devices whose backing file lies in dir: they are
// machine-wide and outlive the host's namespaces.
func detachLoops(dir string) error {
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if len(loops) == 0 {
		return nil
	}
	var top unix.Stat_t
	if err := unix.Stat(dir, &top); err != nil {
		return nil
	}
	inodes := map[uint64]bool{}
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var st unix.Stat_t
			if unix.Lstat(p, &st) == nil {
				inodes[st.Ino] = true
			}
		}
		return nil
	})
	var all error
	for _, l := range loops {
		dev, err := os.OpenFile("/dev/"+strings.Split(l, "/")[3], os.O_RDWR, 0)
		if err != nil {
			continue
		}
		info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
		// A file on an overlay has the overlay's device number, of major 0.
		ours := err == nil && inodes[info.Inode] && (info.Device == top.Dev || unix.Major(info.Device) == 0)
		if ours {
			if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0); err != nil && err != unix.ENXIO {
				all = errors.Join(all, &os.PathError{Op: "detach", Path: dev.Name(), Err: err})
			}
		}
		dev.Close()
	}
	return all
}

// removeTree removes a tree, with files made immutable too.
func removeTree(dir string) error {
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !d.Type().IsRegular() {
			return nil
		}
		fd, err := unix.Open(p, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil
		}
		defer unix.Close(fd)
		flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
		if err == nil && flags&immutableFlag != 0 {
			unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags&^immutableFlag))
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// immutableFlag is FS_IMMUTABLE_FL of linux/fs.h.
const immutableFlag = 0x10
