package stage

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"machined/internal/caps"
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
	return len(os.Args) > 0 && slices.Contains([]string{StageName, StubName, GetentName, LaunchName}, os.Args[0])
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
	for _, step := range []func() error{in.becomeRoot, in.propagation, in.proc, in.sysfs} {
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
		in.cgroup, in.procFiles, in.lateMounts, in.session, in.loopback, in.keyring, in.settings, in.lookupUser, in.raiseLimits,
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
		return nil // without registration there is none
	}
	defer unix.Close(fd)
	if err := setAttr(fd, false, unix.MountAttr{Propagation: unix.MS_SLAVE}); err != nil {
		return fmt.Errorf("make incoming mounts slaves: %w", err)
	}
	return nil
}

// incomingDir is where mounts of the host arrive (machinectl(1), bind).
const incomingDir = "/run/host/incoming"

func (in *inner) proc() error {
	t := in.root
	if err := t.mountFS("/proc", "proc", nosuid|nodev|noexec); err != nil {
		return err
	}
	if err := t.mountFS("/dev/mqueue", "mqueue", nosuid|nodev|noexec); err != nil && !in.plan.ShareIPC {
		return err
	}
	if err := in.openLastPID(); err != nil {
		return err
	}
	if err := in.sysctls(); err != nil {
		return err
	}
	if in.plan.APIVFS == "yes" {
		return nil
	}
	if in.plan.PrivateNet {
		if err := t.bindSelf("/proc/sys/net", true, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	// Read-only from above /proc/sys/net, which keeps its own mount.
	fd, err := t.open("/proc/sys", unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	m, err := cloneTree(fd, true)
	if err != nil {
		return fmt.Errorf("bind /proc/sys: %w", err)
	}
	defer unix.Close(m)
	if err := setAttr(m, false, unix.MountAttr{Attr_set: readonly | nosuid | nodev | noexec}); err != nil {
		return fmt.Errorf("make /proc/sys read-only: %w", err)
	}
	if err := attach(m, fd); err != nil {
		return fmt.Errorf("bind /proc/sys: %w", err)
	}
	for _, name := range []string{"kallsyms", "kcore", "keys", "sysrq-trigger", "timer_list"} {
		if err := maskPath(t, "/proc/"+name); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("hide /proc/%s: %w", name, err)
		}
	}
	for _, name := range []string{"acpi", "apm", "asound", "bus", "fs", "irq", "scsi"} {
		err := t.bindSelf("/proc/"+name, true, readonly|nosuid|nodev|noexec)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// sysfs shows the parts of /sys that belong to the machine's own network.
func (in *inner) sysfs() error {
	t := in.root
	if in.plan.PrivateNet {
		const full = "/sys/full"
		if err := t.mkdir(full, 0o755); err != nil {
			return err
		}
		if err := t.mountFS(full, "sysfs", nosuid|nodev|noexec); err != nil {
			return err
		}
		attrs := uint64(readonly | nosuid | nodev | noexec)
		if in.plan.APIVFS != "no" {
			attrs &^= readonly
		}
		for _, name := range []string{"block", "bus", "class", "dev", "devices", "kernel"} {
			if err := in.sysPart(full, name, attrs); err != nil {
				return fmt.Errorf("mount /sys/%s: %w", name, err)
			}
		}
		if err := unix.Unmount(full, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", full, err)
		}
		if err := unix.Rmdir(full); err != nil {
			return fmt.Errorf("remove %s: %w", full, err)
		}
		if err := errors.Join(t.mkdir("/sys/fs/cgroup", 0o755), t.mkdir("/sys/fs/bpf", 0o755)); err != nil {
			return err
		}
		// Not from below: a mount handed in by the host is locked.
		return in.sealSys()
	}
	return nil
}

func (in *inner) sealSys() error {
	fd, err := in.root.open("/sys", unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := setAttr(fd, false, unix.MountAttr{Attr_set: readonly}); err != nil {
		return fmt.Errorf("make /sys read-only: %w", err)
	}
	return nil
}

func (in *inner) sysPart(full, name string, attrs uint64) error {
	src, err := in.root.open(full+"/"+name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(src)
	target, err := in.root.dir("/sys/"+name, 0o755)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	m, err := cloneTree(src, false)
	if err != nil {
		return err
	}
	defer unix.Close(m)
	if err := setAttr(m, false, unix.MountAttr{Attr_set: attrs}); err != nil {
		return err
	}
	return attach(m, target)
}

// cgroup makes the payload's cgroup the root of what it sees.
func (in *inner) cgroup() error {
	if in.plan.CgroupNS {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("make cgroup namespace: %w", err)
		}
	}
	if in.plan.CgroupNS {
		return in.root.mountFS(cgroupRoot, "cgroup2", nosuid|nodev|noexec)
	}
	if in.plan.Userns == nil {
		if err := in.root.mountFS(cgroupRoot, "cgroup2", nosuid|nodev|noexec); err != nil {
			return err
		}
	}
	return in.ownCgroup()
}

const cgroupRoot = "/sys/fs/cgroup"

// ownCgroup leaves only the payload's part of the host's cgroups writable.
func (in *inner) ownCgroup() error {
	all, err := in.root.open(cgroupRoot, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(all)
	if p := unifiedCgroup(); p != "" && p != "/" {
		target, err := in.root.open(path.Join(cgroupRoot, p), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err == nil {
			defer unix.Close(target)
			m, err := cloneTree(target, false)
			if err != nil {
				return fmt.Errorf("bind cgroup %s: %w", p, err)
			}
			defer unix.Close(m)
			if err := attach(m, target); err != nil {
				return fmt.Errorf("bind cgroup %s: %w", p, err)
			}
		}
	}
	if err := setAttr(all, false, unix.MountAttr{Attr_set: readonly}); err != nil {
		return fmt.Errorf("make cgroups read-only: %w", err)
	}
	return nil
}

// unifiedCgroup is the cgroup that this process is in, "" for none (cgroups(7)).
func unifiedCgroup() string {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return p
		}
	}
	return ""
}

// procFiles puts a boot id of the machine's own, and a silent /proc/kmsg.
func (in *inner) procFiles() error {
	t := in.root
	bind := func(from, to string, attrs uint64) error {
		src, err := t.open(from, unix.O_PATH, 0)
		if err != nil {
			return err
		}
		defer unix.Close(src)
		target, err := t.open(to, unix.O_PATH, 0)
		if err != nil {
			return err
		}
		defer unix.Close(target)
		m, err := cloneTree(src, false)
		if err != nil {
			return err
		}
		defer unix.Close(m)
		if err := setAttr(m, false, unix.MountAttr{Attr_set: attrs}); err != nil {
			return err
		}
		return attach(m, target)
	}
	const bootID = "/run/.#proc-sys-kernel-random-boot-id"
	if err := t.write(bootID, []byte(newBootID()+"\n"), 0o444); err != nil {
		return fmt.Errorf("make boot id: %w", err)
	}
	err := bind(bootID, "/proc/sys/kernel/random/boot_id", readonly|nosuid|nodev|noexec)
	_ = unix.Unlink(bootID)
	if err != nil {
		return fmt.Errorf("bind boot id: %w", err)
	}
	fifo := "/run/.#proc-kmsg"
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		return fmt.Errorf("make kmsg fifo: %w", err)
	}
	err = bind(fifo, "/proc/kmsg", 0)
	_ = unix.Unlink(fifo)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("bind kmsg fifo: %w", err)
	}
	return nil
}

func newBootID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// lateMounts are those that had to wait for our own /proc, and OCI's masks.
func (in *inner) lateMounts() error {
	for i := range in.plan.Mounts {
		m := &in.plan.Mounts[i]
		if !inProc(m.Dest) {
			continue
		}
		var err error
		switch m.Kind {
		case "inaccessible":
			err = maskPath(in.root, m.Dest)
		case "tmpfs":
			attrs, opts := splitAttrs(parseOptions(m.Options))
			err = in.root.mountFS(m.Dest, "tmpfs", attrs, opts...)
		}
		if err != nil && !m.Graceful {
			return fmt.Errorf("mount on %s: %w", m.Dest, err)
		}
	}
	for _, p := range in.plan.MaskedPaths {
		if err := maskPath(in.root, p); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mask %s: %w", p, err)
		}
	}
	for _, p := range in.plan.ROPaths {
		err := in.root.bindSelf(p, true, readonly)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return in.propagate("/", false, in.plan.Propagation)
}

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

// restrict gives up what the payload may not have. Nothing of Go's runtime may
// start a thread afterwards that should keep more.
func (in *inner) restrict() error {
	p := in.plan
	if p.NoNewPrivs {
		// Before the filters: they may need it where capabilities are few.
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no new privileges: %w", err)
		}
	}
	u := in.user
	root := u.uid == 0
	if !root {
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl", err)
		}
	}
	if err := setIDs(u); err != nil {
		return err
	}
	// What we don't have ourselves we can't pass on.
	_, inh, have, err := caps.Get()
	if err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if !root {
		// Changing the user emptied the effective set; the filters need it.
		if err := caps.Apply(caps.All(), have, inh, have, 0); err != nil {
			return fmt.Errorf("keep capabilities: %w", err)
		}
	}
	for _, filter := range p.Seccomp {
		if err := loadSeccomp(filter); err != nil {
			return fmt.Errorf("load system call filter: %w", err)
		}
	}
	b, ambient := p.CapBounding&have, p.CapAmbient&have
	switch {
	case p.OCICaps != nil:
		c := p.OCICaps
		err = caps.Apply(c.Bounding&have, c.Effective&have, c.Inheritable&have, c.Permitted&have, c.Ambient&have)
	case root:
		err = caps.Apply(b, b, b, b, ambient)
	default:
		err = caps.Apply(b, ambient, ambient, ambient, ambient)
	}
	if err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	return nil
}

func setIDs(u passwd) error {
	groups := u.groups
	var ptr unsafe.Pointer
	if len(groups) > 0 {
		ptr = unsafe.Pointer(&groups[0])
	}
	for _, fd := range []int{0, 1, 2} {
		// What a console of ours is must be the user's; foreign streams stay.
		if u.uid != 0 {
			if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
				_ = unix.Fchown(fd, int(u.uid), int(u.gid))
			}
		}
	}
	err := errors.Join(
		raw("setgroups", unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(ptr)),
		raw("setresgid", unix.SYS_SETRESGID, uintptr(u.gid), uintptr(u.gid), uintptr(u.gid)),
		raw("setresuid", unix.SYS_SETRESUID, uintptr(u.uid), uintptr(u.uid), uintptr(u.uid)),
	)
	runtime.KeepAlive(groups)
	if err != nil {
		return fmt.Errorf("change to user %d: %w", u.uid, err)
	}
	return nil
}

// loadSeccomp installs one filter, an array of struct sock_filter, on this
// thread (seccomp(2)).
func loadSeccomp(filter []byte) error {
	const size = int(unsafe.Sizeof(unix.SockFilter{}))
	n := len(filter) / size
	if n == 0 {
		return nil
	}
	prog := unix.SockFprog{Len: uint16(n), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0]))}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return errno
	}
	return nil
}
