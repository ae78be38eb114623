package stage

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// AsMainThread gives the calling thread the umask, the directories and the network of
// the main one. It is for a thread that is about to execute another program.
func AsMainThread() error {
	umask, err := mainUmask()
	if err != nil {
		return err
	}
	unix.Umask(umask)
	main := "/proc/" + strconv.Itoa(os.Getpid())
	fd, err := unix.Open(main+"/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	defer unix.Close(fd)
	var ours, theirs unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &theirs), unix.Stat("/proc/thread-self/ns/net", &ours)); err != nil {
		return err
	}
	if ours.Ino != theirs.Ino {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
	}
	// Opened before the root changes, as /proc may not be there afterwards.
	wd, err := unix.Open(main+"/cwd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	defer unix.Close(wd)
	if err := unix.Chroot(main + "/root"); err != nil {
		return os.NewSyscallError("chroot", err)
	}
	return os.NewSyscallError("fchdir", unix.Fchdir(wd))
}

// mainUmask is the main thread's umask, which can't be asked for but in /proc.
func mainUmask() (int, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "Umask:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32)
			return int(n), err
		}
	}
	return 0, errors.New("/proc/self/status has no umask")
}
