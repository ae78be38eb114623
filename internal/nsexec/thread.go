// Package nsexec acts inside a machine's namespaces: pseudo terminals, its
// bus socket, os-release, root directory, id maps, bind mounts
// and copies. It never runs a program of the machine, never trusts what lies in
// it, and never leaves its root. It knows nothing of D-Bus, of the registry or
// of who asks.
//
// Three ways in, from the lightest: paths beneath /proc/PID/root resolved by
// openat2(2) with RESOLVE_IN_ROOT, which needs no namespace change; a thread of
// our own that has left the others' file system context (unshare(CLONE_FS)),
// joins a mount or network namespace, and dies with its work; and a helper
// process (this program, executed again) for work that may take long. A user
// namespace can't be joined by a program with several threads (setns(2)); where
// an act must look like the machine's root, the thread takes its IDs instead.
package nsexec

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// inMountNamespace runs f on a thread in the mount namespace of p, with the
// file system IDs of the machine's root, all capabilities, and umask 0. root is
// the machine's root directory. What f does may hang: see within.
func inMountNamespace(p *sys.Process, f func(root int) error) error {
	uid, gid, err := rootIDs(p)
	if err != nil {
		return err
	}
	root, err := sys.OpenRootOf(p)
	if err != nil {
		return err
	}
	defer root.Close()
	ns, err := sys.OpenNamespace(p, "mnt")
	if err != nil {
		return err
	}
	defer ns.Close()
	return sys.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("leave file system context: %w", os.NewSyscallError("unshare", err))
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("join mount namespace of process %d: %w", p.PID(), os.NewSyscallError("setns", err))
		}
		unix.Umask(0)
		if err := takeFSIDs(uid, gid); err != nil {
			return err
		}
		return f(int(root.Fd()))
	})
}

// takeFSIDs makes the thread create files as uid and gid. A file system that
// maps IDs knows no others. The capabilities that setfsuid(2) takes away come
// back, for the thread acts on the machine's files as host root all the same.
func takeFSIDs(uid, gid uint32) error {
	if uid == 0 && gid == 0 {
		return nil
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	// These two are per thread and report no error; reading back is the check.
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
	_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
	nowUID, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, uintptr(^uint32(0)), 0, 0)
	nowGID, _, _ := unix.RawSyscall(unix.SYS_SETFSGID, uintptr(^uint32(0)), 0, 0)
	if uint32(nowUID) != uid || uint32(nowGID) != gid {
		return fmt.Errorf("take file system ids %d:%d: %w", uid, gid, unix.EPERM)
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	return nil
}
