package stage

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/pack"
	"machined/internal/sys"
)

// stubGrace is how long processes have to end before the stub gives up on them.
const stubGrace = 90 * time.Second

// stubCalm is how long the stub runs before it gives back what only its start needed.
const stubCalm = 2 * time.Second

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
	unix.CloseOnExec(stubRelease)
	unix.CloseOnExec(stubStart)
	start := os.NewFile(stubStart, "start")
	var about stubSpec
	data, err := io.ReadAll(start)
	_ = start.Close()
	if err != nil || pack.Unmarshal(data, &about) != nil {
		return 1
	}
	for _, l := range about.Limits {
		switch l.Resource {
		case unix.RLIMIT_AS, unix.RLIMIT_DATA, unix.RLIMIT_STACK, unix.RLIMIT_CPU, unix.RLIMIT_RTTIME:
			// They would be the end of an init that needs more than its payload may have.
		default:
			_ = setLimits([]Rlimit{l})
		}
	}
	// The terminal and the sockets are the payload's.
	if null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		for fd := range 3 {
			_ = unix.Dup3(null, fd, 0)
		}
		_ = unix.Close(null)
	}
	for fd := stubStart + 1; isInherited(fd); fd++ {
		_ = unix.Close(fd)
	}
	_ = unix.Close(stubRelease)
	return (&stub{pid: about.PID, stop: syscall.Signal(about.Stop)}).loop(signals)
}

// isInherited tells a descriptor passed to the payload from one of the runtime,
// whose are all close-on-exec.
func isInherited(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil && flags&unix.FD_CLOEXEC == 0
}

// Descriptors that the stub starts with: process 2 waits for the end of the
// first, and the second has a stubSpec. Its command line has nothing to tell.
const (
	stubRelease = 3
	stubStart   = 4
)

// stubSpec is what the stub has to know.
type stubSpec struct {
	PID    int // the payload's
	Limits []Rlimit
	Stop   int // signal that asks the payload to end, 0 for none in particular
}

// handOver puts the descriptors of the stub where it looks for them. The payload
// has its own already.
func (in *inner) handOver(pid, release int) error {
	data := pack.Marshal(stubSpec{PID: pid, Limits: in.plan.Rlimits, Stop: in.plan.StopSignal})
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	if _, err := unix.Write(p[1], data); err != nil { // fits any pipe
		return os.NewSyscallError("write", err)
	}
	// Out of the way of each other first; the program and the channel, which an error
	// goes through, too.
	high := make([]int, 4)
	for i, fd := range []int{release, p[0], in.exe, int(in.ch.f.Fd())} {
		var err error
		if high[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 64); err != nil {
			return os.NewSyscallError("fcntl", err)
		}
	}
	in.exe = high[2]
	in.replaced, in.ch = in.ch, &Channel{os.NewFile(uintptr(high[3]), "supervisor")}
	_ = unix.Close(release)
	_ = unix.Close(p[1])
	return errors.Join(
		os.NewSyscallError("dup3", unix.Dup3(high[0], stubRelease, 0)),
		os.NewSyscallError("dup3", unix.Dup3(high[1], stubStart, 0)),
	)
}

type stub struct {
	pid    int
	stop   syscall.Signal
	reboot int // argument of reboot(2), 0 while running
}

// exitSignaled is the exit status for a payload that a signal killed; stock's
// stub init has the same.
const exitSignaled = 255

func (s *stub) loop(signals chan os.Signal) int {
	var deadline <-chan time.Time
	calm := time.After(stubCalm)
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
		case <-calm:
			sys.DropCode()
		case sig := <-signals:
			n, _ := sig.(syscall.Signal)
			cmd := rebootCommand(n)
			if cmd == 0 && s.stop != 0 && n == s.stop {
				// The payload's end is the machine's, and it may take its time.
				_ = syscall.Kill(s.pid, s.stop)
				_ = syscall.Kill(s.pid, syscall.SIGCONT)
				continue
			}
			if cmd == 0 || s.reboot != 0 {
				continue
			}
			s.reboot = cmd
			if s.stop != 0 && rebootCommand(s.stop) == 0 {
				_ = syscall.Kill(s.pid, s.stop)
			} else {
				_ = syscall.Kill(-1, syscall.SIGTERM)
			}
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
