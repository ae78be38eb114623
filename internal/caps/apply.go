package caps

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// DropBounding removes every capability that is not in keep from the bounding
// set of the calling thread. It needs CAP_SETPCAP.
func DropBounding(keep uint64) error {
	for n := range Last() + 1 {
		if keep&Bit(n) != 0 {
			continue
		}
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n), 0, 0, 0)
		if err != nil {
			return fmt.Errorf("read bounding set for %s: %w", Name(n), os.NewSyscallError("prctl", err))
		}
		if has == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); err != nil {
			return fmt.Errorf("drop %s from bounding set: %w", Name(n), os.NewSyscallError("prctl", err))
		}
	}
	return nil
}

// Apply sets all five capability sets of the calling thread: the bounding set
// first, while it still may, then effective, inheritable and permitted at once,
// then the ambient set. Bits beyond the kernel's last capability are ignored. Eff
// must be within perm, ambient within both inh and perm (capabilities(7)). The
// thread must be locked.
func Apply(bounding, eff, inh, perm, ambient uint64) error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient set: %w", os.NewSyscallError("prctl", err))
	}
	if err := DropBounding(bounding); err != nil {
		return err
	}
	all := All()
	eff, inh, perm, ambient = eff&all, inh&all, perm&all, ambient&all
	if err := set(eff, inh, perm); err != nil {
		return err
	}
	for n := range Last() + 1 {
		if ambient&Bit(n) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(n), 0, 0); err != nil {
			return fmt.Errorf("raise ambient %s: %w", Name(n), os.NewSyscallError("prctl", err))
		}
	}
	return nil
}

func set(eff, inh, perm uint64) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(eff), Inheritable: uint32(inh), Permitted: uint32(perm)},
		{Effective: uint32(eff >> 32), Inheritable: uint32(inh >> 32), Permitted: uint32(perm >> 32)},
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", os.NewSyscallError("capset", err))
	}
	return nil
}

// Get returns the effective, inheritable and permitted sets of the calling
// thread.
func Get() (eff, inh, perm uint64, err error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return 0, 0, 0, fmt.Errorf("read capabilities: %w", os.NewSyscallError("capget", err))
	}
	join := func(lo, hi uint32) uint64 { return uint64(lo) | uint64(hi)<<32 }
	return join(data[0].Effective, data[1].Effective), join(data[0].Inheritable, data[1].Inheritable),
		join(data[0].Permitted, data[1].Permitted), nil
}
