package stage

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// stackMount makes the overlay of a mount stack. Its layers are put below
// MountPoint, where the machine's root will hide them.
func (o *outer) stackMount(s *Stack) (int, error) {
	scratch, err := newFS("tmpfs", "tmpfs", 0, option{"mode", "0700"}, option{"size", "4m"})
	if err != nil {
		return -1, err
	}
	defer unix.Close(scratch)
	target, err := unix.Open(MountPoint, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: MountPoint, Err: err}
	}
	err = attach(scratch, target)
	_ = unix.Close(target)
	if err != nil {
		return -1, err
	}
	base, err := openTree(MountPoint)
	if err != nil {
		return -1, err
	}
	defer base.close()
	var lower []string // the top layer first, as the option wants it
	for i, l := range slices.Backward(s.Layers) {
		name := "/" + strconv.Itoa(i)
		if err := o.mountLayer(base, l, name); err != nil {
			return -1, err
		}
		lower = append(lower, name)
	}
	opts := ""
	if s.Writable != "" {
		if err := o.mountLayer(base, Layer{Path: s.Writable}, "/rw"); err != nil {
			return -1, err
		}
		o.asMachineRoot()
		err := errors.Join(base.mkdir("/rw/data", 0o755), base.mkdir("/rw/work", 0o700))
		o.asHost()
		if err != nil {
			return -1, fmt.Errorf("prepare %s: %w", s.Writable, err)
		}
		opts = ",upperdir=rw/data,workdir=rw/work"
	} else {
		// On top of what can't be written to: the mount points that it lacks.
		// And an overlay of one layer alone would be refused.
		if err := o.stackPlaces(base, s, lower); err != nil {
			return -1, err
		}
		lower = append([]string{"/top"}, lower...)
	}
	return stackOverlay(base, "lowerdir="+strings.ReplaceAll(strings.Join(lower, ":"), "/", "")+opts)
}

// stackOverlay makes an overlay by mount(2), whose options fit into a page:
// fsconfig(2) has 256 bytes for all layers, and not every kernel takes one at a
// time. Names in the options are relative to base, so that hundreds of them fit.
// The working directory is this thread's alone.
func stackOverlay(base tree, opts string) (int, error) {
	if err := base.mkdir("/stack", 0o700); err != nil {
		return -1, err
	}
	before, err := unix.Open(".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(before)
	if err := unix.Fchdir(base.fd); err != nil {
		return -1, os.NewSyscallError("fchdir", err)
	}
	defer func() { _ = unix.Fchdir(before) }()
	if err := unix.Mount("overlay", "stack", "overlay", 0, opts); err != nil {
		return -1, fmt.Errorf("make overlay of %d layers: %w", strings.Count(opts, ":")+1, err)
	}
	m, err := unix.OpenTree(unix.AT_FDCWD, "stack", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	return m, errors.Join(os.NewSyscallError("open_tree", err), os.NewSyscallError("umount", unix.Unmount("stack", unix.MNT_DETACH)))
}

// mountLayer puts one layer onto a new directory.
func (o *outer) mountLayer(base tree, l Layer, name string) error {
	m, err := o.layerMount(l)
	if err != nil {
		return err
	}
	defer unix.Close(m)
	target, err := base.dir(name, 0o755)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return attach(m, target)
}

// layerMount is a layer as a detached mount, whose owners are the machine's.
func (o *outer) layerMount(l Layer) (int, error) {
	if l.Device != "" {
		m, err := deviceMount(l.Device, l.FSType, l.ReadOnly)
		if err != nil {
			return -1, err
		}
		return m, o.mapLayer(m, l.Device)
	}
	src, err := unix.Open(l.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: l.Path, Err: err}
	}
	defer unix.Close(src)
	m, err := cloneTree(src, true)
	if err != nil {
		return -1, fmt.Errorf("clone mount of %q: %w", l.Path, err)
	}
	return m, o.mapLayer(m, l.Path)
}

// mapLayer lets what root and its users own on disk appear as the machine's. A
// layer may be another machine's too, so that its files never change hands.
func (o *outer) mapLayer(m int, shown string) error {
	mode := o.plan.Root.Ownership
	if !o.shifted || mode == "off" || mode == "" {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(m, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	foreign := isForeign(st.Uid)
	if mode == "auto" && st.Uid >= 0x10000 && !foreign {
		return nil // shifted already, or nothing of ours
	}
	if err := o.mapRoot(m, foreign && mode != "map"); err != nil {
		return fmt.Errorf("layer %s: %w", shown, err)
	}
	return nil
}

// stackPlaces makes a layer with the mount points that every machine and empty file
// systems lack, and with the directories above them as the layers have them.
func (o *outer) stackPlaces(base tree, s *Stack, lower []string) error {
	like := func(p string) (st unix.Stat_t, ok bool) {
		for _, name := range lower {
			fd, err := base.open(name+p, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
			if err != nil {
				continue
			}
			err = unix.Fstat(fd, &st)
			_ = unix.Close(fd)
			return st, err == nil
		}
		return st, false
	}
	add := func(p string) error {
		st, ok := like(p)
		mode := uint32(0o755)
		if ok {
			mode = st.Mode & 0o7777
		} else if o.shifted {
			st.Uid, st.Gid = o.base, o.base
		}
		if err := base.mkdir("/top"+p, mode); err != nil {
			return err
		}
		fd, err := base.open("/top"+p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return errors.Join(unix.Fchown(fd, int(st.Uid), int(st.Gid)), unix.Fchmod(fd, mode))
	}
	if err := add("/"); err != nil {
		return err
	}
	for _, place := range []string{"/proc", "/sys", "/dev", "/run", "/tmp"} {
		if _, there := like(place); there {
			continue
		}
		if err := add(place); err != nil {
			return fmt.Errorf("make mount point %s: %w", place, err)
		}
	}
	for _, m := range s.Mounts {
		if _, there := like(m.Dest); there || !m.Memory {
			continue
		}
		for i := 1; i <= len(m.Dest); i++ {
			if i < len(m.Dest) && m.Dest[i] != '/' {
				continue
			}
			if err := add(m.Dest[:i]); err != nil {
				return fmt.Errorf("make mount point %s: %w", m.Dest, err)
			}
		}
	}
	return nil
}

// stackMounts does the mounts of a stack, on what is the root by now.
func (o *outer) stackMounts(s *Stack) error {
	for _, sm := range s.Mounts {
		if err := o.stackMountOn(sm); err != nil {
			return err
		}
	}
	return nil
}

func (o *outer) stackMountOn(sm StackMount) error {
	target, err := o.root.dir(sm.Dest, 0o755)
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("Failed to create mount point %s: root is read-only", path.Clean(sm.Dest))
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	var m int
	if sm.Memory {
		m, err = o.tmpfs("0755", "10%")
	} else {
		m, err = o.layerMount(sm.Layer)
	}
	if err != nil {
		return err
	}
	defer unix.Close(m)
	if sm.ReadOnly {
		if err := setAttr(m, true, unix.MountAttr{Attr_set: readonly}); err != nil {
			return err
		}
	}
	if err := attach(m, target); err != nil {
		return fmt.Errorf("mount %s: %w", sm.Dest, err)
	}
	return nil
}
