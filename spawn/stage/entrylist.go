package stage

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"machined/internal/caps"
)

// list is what the process does that becomes the program: first outside, then
// inside, in the order of restrict, which does the same for the machine's payload.
func (e *entry) list(u passwd, programs, args, env []string) (*rawList, error) {
	l := &rawList{cgroup: -1}
	if e.Cgroup != "" {
		fd, err := unix.Open(e.Cgroup, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: e.Cgroup, Err: err}
		}
		l.cgroup = fd
	}
	flags, err := e.namespaces()
	if err != nil {
		return nil, err
	}
	// Nobody inside may look into a copy of this process: neither at its memory nor
	// its descriptors.
	l.add(rawMust, "become opaque", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
	action := hold(l, new([64]byte)) // SIG_DFL, no flags, empty mask, on every architecture
	for sig := uintptr(1); sig <= 64; sig++ {
		l.add(rawTry, "", unix.SYS_RT_SIGACTION, sig, action, 0, SigsetSize)
	}
	for i := range e.Rlimits {
		r := e.Rlimits[i]
		limit := hold(l, &[2]uint64{r.Soft, r.Hard})
		l.add(rawMust, fmt.Sprintf("set resource limit %d", r.Resource), unix.SYS_PRLIMIT64, 0, uintptr(r.Resource), limit, 0)
	}
	if e.Personality != nil {
		l.add(rawMust, "set personality", unix.SYS_PERSONALITY, uintptr(*e.Personality))
	}
	l.add(rawMust, "close descriptors", unix.SYS_CLOSE_RANGE, 3, uintptr(^uint32(0)), unix.CLOSE_RANGE_CLOEXEC)
	l.add(rawMust, "join the machine's namespaces", unix.SYS_SETNS, entryLeader, flags)
	l.addClone()

	l.add(rawMust, "start a session", unix.SYS_SETSID)
	if e.Request.Terminal {
		l.add(rawMust, "take the terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
	l.add(rawTry, "", unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0)
	e.addRights(l, u)
	dir := e.Request.Dir
	if dir != "" {
		p, err := l.text(dir)
		if err != nil {
			return nil, err
		}
		l.add(rawMust, "change to directory "+dir, unix.SYS_CHDIR, p)
	} else if u.home != "" {
		p, err := l.text(u.home)
		if err != nil {
			return nil, err
		}
		l.add(rawTry, "", unix.SYS_CHDIR, p)
	}
	l.add(rawMust, "unblock signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, hold(l, new([16]byte)), 0, SigsetSize)
	argv, err := l.texts(args)
	if err != nil {
		return nil, err
	}
	envp, err := l.texts(env)
	if err != nil {
		return nil, err
	}
	for _, program := range programs {
		p, err := l.text(program)
		if err != nil {
			return nil, err
		}
		l.add(rawExec, args[0], unix.SYS_EXECVE, p, argv, envp)
	}
	return l, nil
}

// addRights changes to the user and gives up what the payload may not have either.
func (e *entry) addRights(l *rawList, u passwd) {
	if e.NoNewPrivs {
		l.add(rawMust, "set no new privileges", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	root := u.uid == 0
	if !root {
		l.add(rawMust, "keep capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	}
	var groups uintptr
	if len(u.groups) > 0 {
		list := append([]uint32(nil), u.groups...)
		l.keep = append(l.keep, list)
		groups = uintptr(unsafe.Pointer(&list[0]))
	}
	l.add(rawMust, "change groups", unix.SYS_SETGROUPS, uintptr(len(u.groups)), groups)
	l.add(rawMust, fmt.Sprintf("change to group %d", u.gid), unix.SYS_SETRESGID, uintptr(u.gid), uintptr(u.gid), uintptr(u.gid))
	l.add(rawMust, fmt.Sprintf("change to user %d", u.uid), unix.SYS_SETRESUID, uintptr(u.uid), uintptr(u.uid), uintptr(u.uid))
	if !root {
		// Changing the user emptied the effective set; the filters need it.
		l.addCapset(e.have, 0, e.have)
	}
	for _, f := range e.Seccomp {
		const size = int(unsafe.Sizeof(unix.SockFilter{}))
		if len(f) < size {
			continue
		}
		l.keep = append(l.keep, f)
		prog := &unix.SockFprog{Len: uint16(len(f) / size), Filter: (*unix.SockFilter)(unsafe.Pointer(&f[0]))}
		l.add(rawMust, "load system call filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, hold(l, prog))
	}
	bounding, ambient := e.CapBounding&e.have, e.CapAmbient&e.have
	l.add(rawMust, "clear ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for n := range caps.Last() + 1 {
		if bounding&caps.Bit(n) == 0 {
			l.add(rawMust, "drop "+caps.Name(n), unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0)
		}
	}
	if root {
		l.addCapset(bounding, bounding, bounding)
	} else {
		l.addCapset(ambient, ambient, ambient)
	}
	for n := range caps.Last() + 1 {
		if ambient&caps.Bit(n) != 0 {
			l.add(rawMust, "raise "+caps.Name(n), unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(n), 0, 0)
		}
	}
	l.add(rawMust, "keep capabilities no more", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0, 0, 0, 0)
}

func (l *rawList) addCapset(effective, inheritable, permitted uint64) {
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := &[2]unix.CapUserData{
		{Effective: uint32(effective), Inheritable: uint32(inheritable), Permitted: uint32(permitted)},
		{Effective: uint32(effective >> 32), Inheritable: uint32(inheritable >> 32), Permitted: uint32(permitted >> 32)},
	}
	l.add(rawMust, "set capabilities", unix.SYS_CAPSET, hold(l, header), hold(l, data))
}

// addClone makes the process that is in the new PID namespace: a child of this
// program's, not of the one that joined.
func (l *rawList) addClone() {
	args := &cloneArgs{flags: unix.CLONE_PARENT}
	l.add(rawClone, "start process in the machine", unix.SYS_CLONE3, hold(l, args), unsafe.Sizeof(*args))
}
