package stage

import (
	"errors"
	"fmt"
	"os"
	"path"
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
	for i, l := range s.Layers {
		name := "/l" + strconv.Itoa(i)
		if err := mountLayer(base, l, name); err != nil {
			return -1, err
		}
		lower = append([]string{name}, lower...)
	}
	opts := []option{}
	if s.Writable != "" {
		if err := mountLayer(base, Layer{Path: s.Writable}, "/rw"); err != nil {
			return -1, err
		}
		if err := errors.Join(base.mkdir("/rw/data", 0o755), base.mkdir("/rw/work", 0o700)); err != nil {
			return -1, fmt.Errorf("prepare %s: %w", s.Writable, err)
		}
		opts = append(opts, option{"upperdir", MountPoint + "/rw/data"}, option{"workdir", MountPoint + "/rw/work"})
	} else {
		// On top of what can't be written to: the places of empty file systems.
		// And an overlay of one layer alone would be refused.
		if err := stackPlaces(base, s, lower); err != nil {
			return -1, err
		}
		lower = append([]string{"/top"}, lower...)
	}
	var dirs strings.Builder
	for i, name := range lower {
		if i > 0 {
			dirs.WriteByte(':')
		}
		dirs.WriteString(MountPoint + name)
	}
	return newFS("overlay", "overlay", 0, append([]option{{"lowerdir", dirs.String()}}, opts...)...)
}

// mountLayer puts one layer onto a new directory.
func mountLayer(base tree, l Layer, name string) error {
	m, err := layerMount(l)
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

// layerMount is a layer as a detached mount.
func layerMount(l Layer) (int, error) {
	if l.Device != "" {
		return deviceMount(l.Device, l.FSType, l.ReadOnly)
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
	return m, nil
}

// stackPlaces makes a layer with the mount points that empty file systems lack, and
// with the directories above them as the layers have them.
func stackPlaces(base tree, s *Stack, lower []string) error {
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
		}
		if err := base.mkdir("/top"+p, mode); err != nil || !ok {
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
		m, err = layerMount(sm.Layer)
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
