package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// overlayMagic is OVERLAYFS_SUPER_MAGIC of linux/magic.h.
const overlayMagic = 0x794c7630

// mounted says whether an overlay is mounted at path itself.
func mounted(path string) bool {
	var stx unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &stx) != nil || stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false
	}
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == overlayMagic
}

func mountedReadOnly(path string) bool {
	var st unix.Statfs_t
	return mounted(path) && unix.Statfs(path, &st) == nil && st.Flags&unix.ST_RDONLY != 0
}

// unmixed refuses a tree into which something is mounted: it cannot be moved.
func unmixed(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	below, err := mountinfo.GetMounts(mountinfo.PrefixFilter(real))
	if err != nil {
		return err
	}
	if len(below) > 0 {
		return fmt.Errorf("%s is mounted: %w", below[0].Mountpoint, ErrBusy)
	}
	return nil
}

// mountLayers mounts a layout over trees, topmost first, attached nowhere. The
// trees are named by descriptors: their paths may be of any length and have any byte.
func mountLayers(layout string, trees []string) (int, error) {
	var open []*os.File
	defer func() {
		for _, f := range open {
			_ = f.Close()
		}
	}()
	name := func(path string) (string, error) {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", &os.PathError{Op: "open", Path: path, Err: err}
		}
		open = append(open, os.NewFile(uintptr(fd), path))
		return "/proc/self/fd/" + strconv.Itoa(fd), nil
	}
	var lower []string
	for _, tree := range trees {
		n, err := name(tree)
		if err != nil {
			return -1, err
		}
		lower = append(lower, n)
	}
	upper, err := name(filepath.Join(layout, "upper"))
	if err != nil {
		return -1, err
	}
	work, err := name(filepath.Join(layout, "work"))
	if err != nil {
		return -1, err
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, refused("fsopen", err)
	}
	defer func() { _ = unix.Close(fs) }()
	for _, o := range [][2]string{
		{"source", "machined"}, {"lowerdir", strings.Join(lower, ":")}, {"upperdir", upper}, {"workdir", work},
		// A change of owner copies no content; a directory can be renamed.
		{"metacopy", "on"}, {"redirect_dir", "on"}, {"index", "off"},
	} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, refused("fsconfig "+o[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, refused("fsconfig create", err)
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("fsmount", err)
	}
	return m, nil
}

// refused is why the kernel makes no mount: because the disk is full, or else because
// overlayfs is of no use there.
func refused(call string, err error) error {
	failed := os.NewSyscallError(call, err)
	for _, disk := range []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EIO, unix.ENOMEM} {
		if errors.Is(err, disk) {
			return failed
		}
	}
	return fmt.Errorf("%w: %w", ErrNotSupported, failed)
}

// mount mounts an image at its name, and makes what it needs for that. The caller
// holds the pool.
func (p Pool) mount(name string) error {
	ids, err := p.layers(name)
	if err != nil {
		return err
	}
	layout := p.layout(name)
	if _, err := os.Lstat(filepath.Join(layout, "upper")); errors.Is(err, os.ErrNotExist) {
		if err := makeUpper(layout, p.base(ids[0])); err != nil {
			return err
		}
	}
	if err := os.Mkdir(p.image(name), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	m, err := mountLayers(layout, p.bases(ids))
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(m) }()
	if err := unix.MoveMount(m, "", unix.AT_FDCWD, p.image(name), unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "mount", Path: p.image(name), Err: err}
	}
	if _, err := os.Lstat(filepath.Join(layout, "read-only")); err == nil {
		return setReadOnly(p.image(name), true)
	}
	return nil
}

// Unmount takes an image's mount away: ErrBusy when something uses it.
func (p Pool) Unmount(name string) error {
	for mounted(p.image(name)) {
		err := unix.Unmount(p.image(name), unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("image %q: %w", name, ErrBusy)
		}
		if err != nil {
			return &os.PathError{Op: "unmount", Path: p.image(name), Err: err}
		}
	}
	return nil
}

// detach unmounts an image and removes the directory that it was mounted on.
func (p Pool) detach(name string) error {
	if err := p.Unmount(name); err != nil {
		return err
	}
	if err := os.Remove(p.image(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return syncDir(string(p))
}

// SetReadOnly marks an image read-only or writable, now and for later mounts.
func (p Pool) SetReadOnly(name string, on bool) error {
	mark := filepath.Join(p.layout(name), "read-only")
	var err error
	if on {
		err = os.WriteFile(mark, nil, 0o600)
	} else if err = os.Remove(mark); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	if err := setReadOnly(p.image(name), on); err != nil {
		return err
	}
	return syncDir(p.layout(name))
}

func setReadOnly(path string, on bool) error {
	attr := &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	if on {
		attr = &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, attr); err != nil {
		return &os.PathError{Op: "mount_setattr", Path: path, Err: err}
	}
	return nil
}
