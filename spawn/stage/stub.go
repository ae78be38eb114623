package stage

import (
	"errors"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stubGrace is how long processes have to end before the stub gives up on them.
const stubGrace = 90 * time.Second

// rtmin is SIGRTMIN as the C library counts.
const rtmin = 34

// stubMain is the init of a machine whose payload is process 2: it reaps, and
// understands the signals by which a machine is shut down.
func stubMain() int {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	signal.Ignore(syscall.SIGPIPE)
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	_ = os.WriteFile("/proc/self/comm", []byte("(sd-stubinit)"), 0)
	if len(os.Args) < 3 {
		return 1
	}
	pid, err1 := strconv.Atoi(os.Args[1])
	release, err2 := strconv.Atoi(os.Args[2])
	if err1 != nil || err2 != nil {
		return 1
	}
	unix.CloseOnExec(release)
	// The terminal and the sockets are the payload's.
	if null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		for fd := range 3 {
			_ = unix.Dup3(null, fd, 0)
		}
		_ = unix.Close(null)
	}
	for fd := 3; isInherited(fd); fd++ {
		_ = unix.Close(fd)
	}
	_ = unix.Close(release)
	return (&stub{pid: pid}).loop(signals)
}

// isInherited tells a descriptor passed to the payload from one of the runtime,
// whose are all close-on-exec.
func isInherited(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil && flags&unix.FD_CLOEXEC == 0
}

type stub struct {
	pid    int
	reboot int // argument of reboot(2), 0 while running
}

// exitSignaled is the exit status for a payload that a signal killed; stock's
// stub init has the same.
const exitSignaled = 255

func (s *stub) loop(signals chan os.Signal) int {
	var deadline <-chan time.Time
	status := 0
	for {
		for {
			var ws syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			if errors.Is(err, syscall.ECHILD) {
				if s.reboot != 0 {
					return s.finish()
				}
				return status
			}
			if pid <= 0 {
				break
			}
			if pid == s.pid && (ws.Exited() || ws.Signaled()) {
				if s.reboot == 0 {
					// As with any init: its end is the machine's.
					if ws.Exited() {
						return ws.ExitStatus()
					}
					return exitSignaled
				}
			}
		}
		select {
		case <-deadline:
			return s.finish()
		case sig := <-signals:
			n, _ := sig.(syscall.Signal)
			cmd := rebootCommand(n)
			if cmd == 0 || s.reboot != 0 {
				continue
			}
			s.reboot = cmd
			_ = syscall.Kill(-1, syscall.SIGTERM)
			_ = syscall.Kill(-1, syscall.SIGCONT)
			_ = syscall.Kill(-1, syscall.SIGHUP)
			deadline = time.After(stubGrace)
		}
	}
}

// rebootCommand is what a signal asks init for (systemd(1), SIGNALS).
func rebootCommand(sig syscall.Signal) int {
	switch sig {
	case rtmin + 3, rtmin + 4, rtmin + 13, rtmin + 14:
		return unix.LINUX_REBOOT_CMD_POWER_OFF
	case syscall.SIGINT, rtmin + 5, rtmin + 6, rtmin + 15, rtmin + 16:
		return unix.LINUX_REBOOT_CMD_RESTART
	}
	return 0
}

func (s *stub) finish() int {
	_ = syscall.Kill(-1, syscall.SIGKILL)
	if err := unix.Reboot(s.reboot); err != nil {
		// Without CAP_SYS_BOOT the machine ends all the same.
		if s.reboot == unix.LINUX_REBOOT_CMD_RESTART {
			return 133
		}
	}
	return 0
}
