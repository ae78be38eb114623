package stage

import (
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// extraNodes makes the device nodes that an OCI bundle asks for.
func (o *outer) extraNodes() error {
	for _, n := range o.plan.Nodes {
		if err := o.extraNode(n); err != nil {
			return fmt.Errorf("make device node %s: %w", n.Path, err)
		}
	}
	return nil
}

func (o *outer) extraNode(n Node) error {
	o.asMachineRoot()
	parent, err := o.root.dir(path.Dir(n.Path), 0o755)
	o.asHost()
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	name := path.Base(n.Path)
	if err := unix.Mknodat(parent, name, n.Mode, int(n.Device)); err != nil {
		// What every machine has may be asked for again.
		var st unix.Stat_t
		if unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&unix.S_IFMT != n.Mode&unix.S_IFMT ||
			n.Mode&unix.S_IFMT != unix.S_IFIFO && uint64(st.Rdev) != n.Device {
			return os.NewSyscallError("mknod", err)
		}
	}
	in := tree{parent}
	fd, err := in.open(name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchownat(fd, "", int(n.UID+o.base), int(n.GID+o.base), unix.AT_EMPTY_PATH); err != nil {
		return os.NewSyscallError("chown", err)
	}
	// After the owner, whose change clears set-ID bits; the umask doesn't count.
	return os.NewSyscallError("chmod", unix.Chmod(procFD(fd), n.Mode&0o7777))
}

// sysctls sets what belongs to the machine's own namespaces, while /proc/sys is
// writable.
func (in *inner) sysctls() error {
	for _, s := range in.plan.Sysctls {
		fd, err := in.root.open("/proc/sys/"+strings.ReplaceAll(s.Key, ".", "/"), unix.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("set sysctl %s: %w", s.Key, err)
		}
		_, err = unix.Write(fd, []byte(s.Value))
		_ = unix.Close(fd)
		if err != nil {
			return fmt.Errorf("set sysctl %s to %q: %w", s.Key, s.Value, err)
		}
	}
	return nil
}

// chosenPropagation is for the mounts of which a bundle says it.
func (in *inner) chosenPropagation() error {
	for _, m := range in.plan.Mounts {
		if err := in.propagate(m.Dest, m.Recursive, m.Propagation); err != nil {
			return err
		}
	}
	return nil
}

func (in *inner) propagate(p string, recursive bool, flag uint64) error {
	if flag == 0 {
		return nil
	}
	fd, err := in.root.open(p, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := setAttr(fd, recursive, unix.MountAttr{Propagation: flag}); err != nil {
		return fmt.Errorf("set mount propagation of %s: %w", p, err)
	}
	return nil
}
