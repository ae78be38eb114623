package stage

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// StageName and StubName are how this program is called when it is the first
// process of a machine: to set it up, and as its init with --as-pid2.
const (
	StageName = "(sd-stage)"
	StubName  = "(sd-stubinit)"
)

// stageAgain asks the stage to execute itself once more.
const stageAgain = "again"

// IsStage tells whether the program was executed as one of the stages. It must
// be asked from an init function, which runs on the main thread.
func IsStage() bool {
	return len(os.Args) > 0 && slices.Contains([]string{StageName, StubName, GetentName, LaunchName, EntryName}, os.Args[0])
}

// Main runs the stage and does not return. The main thread must be locked.
func Main() {
	runtime.LockOSThread()
	switch os.Args[0] {
	case GetentName:
		_ = getentMain()
		os.Exit(1)
	case StubName:
		os.Exit(stubMain())
	case EntryName:
		os.Exit(entryMain())
	}
	if len(os.Args) < 2 {
		os.Exit(1)
	}
	if os.Args[0] == LaunchName {
		os.Exit(launchMain())
	}
	first, err := strconv.Atoi(os.Args[1])
	if err != nil || first < 3 {
		os.Exit(1)
	}
	if len(os.Args) > 2 && os.Args[2] == stageAgain {
		// The numbers of our threads are free again afterwards, so that the
		// machine's second process can be number 2.
		_ = execFD(first+1, []string{StageName, os.Args[1]}, os.Environ())
		os.Exit(1)
	}
	unix.CloseOnExec(first)
	unix.CloseOnExec(first + 1)
	in := &inner{ch: &Channel{os.NewFile(uintptr(first), "supervisor")}, exe: first + 1}
	err = in.run()
	m := message{Step: stepError, Error: err.Error()}
	var e *Error
	if errors.As(err, &e) {
		m.Code = e.Code
	}
	_ = in.ch.send(m)
	os.Exit(1)
}

// inner is the set-up that happens inside the machine's namespaces.
type inner struct {
	ch   *Channel
	exe  int
	plan *Plan
	root tree
	user passwd
	// lastPID is an open /proc/sys/kernel/ns_last_pid, 0 without.
	lastPID int
	// replaced is the channel of before, whose descriptor is another one's now and must
	// not be closed.
	replaced *Channel
}

func (in *inner) run() error {
	m, err := in.ch.receive()
	if err != nil {
		return err
	}
	if m.Step != StepMapped || m.Plan == nil {
		return fmt.Errorf("supervisor said %q instead of %q", m.Step, StepMapped)
	}
	in.plan = m.Plan
	for _, step := range []func() error{in.becomeRoot, in.propagation, in.proc, in.sysfs, in.nestingMounts} {
		if err := step(); err != nil {
			return err
		}
	}
	if err := in.ch.Send(StepMounted, nil); err != nil {
		return err
	}
	if err := in.ch.Wait(StepCgroup); err != nil {
		return err
	}
	for _, step := range []func() error{
		in.cgroup, in.leaf, in.procFiles, in.lateMounts, in.session, in.loopback, in.keyring, in.settings, in.lookupUser, in.raiseLimits,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return in.execute()
}

func raw(name string, number uintptr, args ...uintptr) error {
	var a [3]uintptr
	copy(a[:], args)
	if _, _, errno := unix.RawSyscall(number, a[0], a[1], a[2]); errno != 0 {
		return os.NewSyscallError(name, errno)
	}
	return nil
}

// becomeRoot takes the ids of the user namespace, on this thread only: it is the
// one that will execute the payload.
func (in *inner) becomeRoot() error {
	err := errors.Join(
		raw("setgroups", unix.SYS_SETGROUPS, 0, 0),
		raw("setresgid", unix.SYS_SETRESGID, 0, 0, 0),
		raw("setresuid", unix.SYS_SETRESUID, 0, 0, 0),
		// Changing credentials cleared it.
		unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0),
		unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0),
		unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0),
	)
	if err != nil {
		return fmt.Errorf("become root of the machine: %w", err)
	}
	unix.Umask(0o022)
	return nil
}

// propagation cuts this namespace off from the one it was copied from, but for
// what comes in, and makes mounts shared, as systemd inside expects.
func (in *inner) propagation() error {
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts slaves: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	var err error
	if in.root, err = openTree("/"); err != nil {
		return err
	}
	if err := in.chosenPropagation(); err != nil {
		return err
	}
	// What the host hands in goes no further.
	fd, err := in.root.open(incomingDir, unix.O_PATH, 0)
	if err != nil {
		return nil // a settings file or image of the user's may have hidden it
	}
	defer unix.Close(fd)
	if err := setAttr(fd, false, unix.MountAttr{Propagation: unix.MS_SLAVE}); err != nil {
		return fmt.Errorf("make incoming mounts slaves: %w", err)
	}
	return nil
}

// incomingDir is where mounts of the host arrive (machinectl(1), bind).
const incomingDir = "/run/host/incoming"

// session detaches from the caller's terminal and takes the machine's.
func (in *inner) session() error {
	_, err := unix.Setsid()
	if err != nil && !errors.Is(err, unix.EPERM) {
		return os.NewSyscallError("setsid", err)
	}
	if in.plan.Console.PTY && in.plan.Console.Attach {
		// By its name in our own mounts, so that ttyname(3) finds it.
		fd, err := in.root.open("/dev/console", unix.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			return fmt.Errorf("open console: %w", err)
		}
		for n := range 3 {
			if err := unix.Dup3(fd, n, 0); err != nil {
				return os.NewSyscallError("dup3", err)
			}
		}
		_ = unix.Close(fd)
	}
	if !in.plan.PID2 {
		takeTerminal()
	}
	return nil
}

func takeTerminal() {
	if _, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		_ = unix.IoctlSetInt(0, unix.TIOCSCTTY, 0)
	}
}

// loopback brings lo up in a network that we made.
func (in *inner) loopback() error {
	if !in.plan.NewNet {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	return nil
}

// keyring starts a new session keyring, so that the host's can't be searched.
func (in *inner) keyring() error {
	// Without a name it is a new, anonymous one.
	err := raw("keyctl", unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0)
	if err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("make session keyring: %w", err)
	}
	return nil
}

func (in *inner) settings() error {
	p := in.plan
	// Audit's login UID must be unset for the logins inside.
	_ = os.WriteFile("/proc/self/loginuid", []byte("4294967295"), 0)
	if p.OOMScore != nil {
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(*p.OOMScore)), 0); err != nil {
			return fmt.Errorf("set OOM score to %d: %w", *p.OOMScore, err)
		}
	}
	if len(p.Affinity) > 0 {
		var set unix.CPUSet
		for _, n := range p.Affinity {
			set.Set(n)
		}
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return fmt.Errorf("set CPU affinity: %w", err)
		}
	}
	if !p.ShareUTS {
		if err := unix.Sethostname([]byte(p.Hostname)); err != nil {
			return fmt.Errorf("set hostname to %q: %w", p.Hostname, err)
		}
	}
	if p.Domainname != "" {
		if err := unix.Setdomainname([]byte(p.Domainname)); err != nil {
			return fmt.Errorf("set domain name to %q: %w", p.Domainname, err)
		}
	}
	if p.Personality != nil {
		if err := raw("personality", unix.SYS_PERSONALITY, uintptr(*p.Personality)); err != nil {
			return fmt.Errorf("set personality: %w", err)
		}
	}
	return nil
}
