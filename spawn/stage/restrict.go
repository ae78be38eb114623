package stage

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"machined/internal/caps"
)

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
