package stage

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// attachRoot puts the image at MountPoint, mapped, and opens it.
func (o *outer) attachRoot() error {
	r := &o.plan.Root
	if err := os.MkdirAll(MountPoint, 0o700); err != nil {
		return err
	}
	image, err := o.imageMount()
	if err != nil {
		return err
	}
	defer unix.Close(image)
	image, err = o.shiftOwnership(image)
	if err != nil {
		return err
	}
	target, err := unix.Open(MountPoint, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: MountPoint, Err: err}
	}
	defer unix.Close(target)
	if err := attach(image, target); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	if o.root, err = openTree(MountPoint); err != nil {
		return err
	}
	rest, err := o.usrPartition()
	if err != nil {
		return err
	}
	if r.PivotNew != "" {
		if err := o.pivotRoot(); err != nil {
			return err
		}
	}
	if r.Overlay != "" {
		if err := o.ephemeralOverlay(r.Overlay); err != nil {
			return fmt.Errorf("make ephemeral root: %w", err)
		}
	}
	switch r.Volatile {
	case "", "no":
	case "yes":
		err = o.volatileYes()
	case "state":
		err = o.volatileState()
	case "overlay":
		err = o.volatileOverlay()
	}
	if err != nil {
		return fmt.Errorf("make volatile root: %w", err)
	}
	if r.Custom != nil {
		return o.customRoot()
	}
	for _, p := range rest {
		if err := o.partition(p); err != nil {
			return err
		}
	}
	if r.Stack != nil {
		if err := o.stackMounts(r.Stack); err != nil {
			return err
		}
	}
	if o.io.Rooted != nil {
		return o.io.Rooted(o.root.fd)
	}
	return nil
}

// imageMount is the image as a detached mount, private.
func (o *outer) imageMount() (int, error) {
	r := &o.plan.Root
	switch {
	case r.Device != "":
		m, err := deviceMount(r.Device, r.FSType, r.ReadOnly || r.DeviceReadOnly)
		if err == nil && r.Grow {
			o.grow(m, r.Device, r.FSType)
		}
		return m, err
	case r.Memory:
		return o.tmpfs("0755", "25%")
	case r.Stack != nil:
		return o.stackMount(r.Stack)
	}
	src, err := unix.Open(r.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: r.Path, Err: err}
	}
	defer unix.Close(src)
	m, err := cloneTree(src, true)
	if err != nil {
		return -1, fmt.Errorf("clone mount of %q: %w", r.Path, err)
	}
	// What is mounted later in the host's view of the tree stays there.
	if err := setAttr(m, true, unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		_ = unix.Close(m)
		return -1, fmt.Errorf("make mount of %q private: %w", r.Path, err)
	}
	return m, nil
}

// shiftOwnership reconciles the owners on disk with the machine's UID range: an
// idmapped mount where the filesystem can, chown where the plan asks for it.
func (o *outer) shiftOwnership(m int) (int, error) {
	mode := o.plan.Root.Ownership
	if !o.shifted || mode == "off" || mode == "" || o.plan.Root.Memory || o.plan.Root.Stack != nil {
		return m, nil // a stack's layers are mapped each
	}
	var st unix.Stat_t
	if err := unix.Fstat(m, &st); err != nil {
		return m, os.NewSyscallError("fstat", err)
	}
	if mode == "auto" && st.Uid&0xffff0000 == o.base && o.base != 0 {
		return m, nil // shifted already
	}
	foreign := isForeign(st.Uid)
	if mode == "foreign" && !foreign {
		return m, fmt.Errorf("the root belongs to UID %d, which is not of the foreign range (from %d on)", st.Uid, foreignBase)
	}
	if mode == "map" || mode == "foreign" || mode == "auto" && (st.Uid < 0x10000 || foreign) {
		err := o.mapRoot(m, foreign && mode != "map")
		// What says nothing about the file system is no reason to rewrite it.
		if err == nil || mode != "auto" || !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
			return m, err
		}
	}
	if o.plan.Root.ReadOnly || o.plan.Root.Volatile == "yes" || o.plan.Root.Volatile == "state" || o.plan.Root.Volatile == "overlay" {
		return m, errors.New("change ownership of root: the image is read-only")
	}
	// A detached mount can't be walked everywhere; the image's own directory can.
	fd, err := unix.Open(procFD(m), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return m, fmt.Errorf("open root to change its ownership: %w", err)
	}
	defer unix.Close(fd)
	if err := o.shiftDir(fd, o.base); err != nil {
		return m, fmt.Errorf("change ownership of root: %w", err)
	}
	return m, nil
}

// foreignBase is the first of 65536 IDs that own trees of machines on disk without
// being anybody's (systemd's UIDS-GIDS document: "foreign UID range").
const foreignBase = 2147352576

func isForeign(uid uint32) bool { return uid >= foreignBase && uid-foreignBase < 0x10000 }

// mapRoot lets the owners on disk, IDs from 0 on or those of the foreign range,
// appear as the machine's.
func (o *outer) mapRoot(m int, foreign bool) error {
	fd, err := -1, error(nil)
	if foreign {
		maps := []Mapping{{foreignBase, o.base, min(o.plan.Userns.Count, 0x10000)}}
		if o.base != 0 {
			maps = append(maps, Mapping{hostRootOnDisk, 0, 1})
		}
		if fd, err = usernsFD(maps); err == nil {
			defer unix.Close(fd)
		}
	} else {
		fd, err = o.idmapFD()
	}
	if err != nil {
		// Not the file system's errors.
		return fmt.Errorf("map ownership of root: %v", err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(fd)}
	err = setAttr(m, true, attr)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		// A mount below that can't be mapped: map at least the top.
		err = setAttr(m, false, attr)
	}
	if err != nil {
		return fmt.Errorf("map ownership of root: %w", err)
	}
	return nil
}

// protectRoot makes the root read-only before anything but the base directories is made in it.
func (o *outer) protectRoot() error {
	if o.plan.Root.ReadOnlyLate {
		return nil
	}
	return o.readOnlyRoot()
}

func (o *outer) readOnlyRoot() error {
	r := &o.plan.Root
	if !r.ReadOnly && r.Volatile != "state" {
		return nil
	}
	if r.Volatile == "yes" {
		return nil
	}
	if err := setAttr(o.root.fd, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make root read-only: %w", err)
	}
	return nil
}

// baseDirs makes what every root needs. A root that can't be written must have it.
func (o *outer) baseDirs() error {
	o.asMachineRoot()
	defer o.asHost()
	t := o.root
	for _, link := range []struct{ name, target string }{
		{"/bin", "usr/bin"}, {"/lib", "usr/lib"}, {"/sbin", "usr/sbin"}, {"/lib64", "usr/lib64"},
	} {
		if t.exists("/"+link.target) && !t.lexists(link.name) {
			_ = t.symlink(link.target, link.name)
		}
	}
	for _, dir := range []struct {
		name string
		mode uint32
	}{
		{"/root", 0o750}, {"/usr", 0o755}, {"/var", 0o755}, {"/etc", 0o755}, {"/proc", 0o555},
		{"/sys", 0o555}, {"/dev", 0o755}, {"/run", 0o755}, {"/tmp", 0o1777},
	} {
		if t.lexists(dir.name) {
			continue
		}
		err := t.mkdir(dir.name, dir.mode)
		if err != nil && !errors.Is(err, unix.EROFS) {
			return fmt.Errorf("create base directories: %w", err)
		}
	}
	return nil
}

// rebase makes dir the mount tree's new root, in place of what is at MountPoint.
func (o *outer) rebase(mount int) error {
	target, err := unix.Open(MountPoint, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	if err := attach(mount, target); err != nil {
		return err
	}
	o.root.close()
	o.root, err = openTree(MountPoint)
	return err
}

func (o *outer) tmpfs(mode, size string) (int, error) {
	return newFS("tmpfs", "tmpfs", unix.MOUNT_ATTR_STRICTATIME, tmpfsOptions(mode, size, "1m", o.base, o.shifted)...)
}

// volatileYes: an empty root in memory, with the image's /usr in it, read-only.
func (o *outer) volatileYes() error {
	var st unix.Stat_t
	fd, err := o.root.open("/bin", unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err == nil {
		err = unix.Fstat(fd, &st)
		_ = unix.Close(fd)
	}
	switch {
	case errors.Is(err, unix.ENOENT): // an image of nothing but /usr
	case err != nil:
		return fmt.Errorf("look at /bin of the image: %w", err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return errors.New("sorry, --volatile=yes mode is not supported with OS images that have not merged /bin/, /sbin/, /lib/, /lib64/ into /usr/. Please work with your distribution and help them adopt the merged /usr scheme")
	}
	usr, err := o.root.open("/usr", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(usr)
	usrMount, err := cloneTree(usr, true)
	if err != nil {
		return err
	}
	defer unix.Close(usrMount)
	if err := setAttr(usrMount, true, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return err
	}
	m, err := o.tmpfs("0755", "25%")
	if err != nil {
		return err
	}
	defer unix.Close(m)
	if err := o.rebase(m); err != nil {
		return err
	}
	o.asMachineRoot()
	target, err := o.root.dir("/usr", 0o755)
	o.asHost()
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return attach(usrMount, target)
}

// volatileState: the image read-only, with an empty /var.
func (o *outer) volatileState() error {
	target, err := o.root.dir("/var", 0o755)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	m, err := o.tmpfs("0755", "25%")
	if err != nil {
		return err
	}
	defer unix.Close(m)
	return attach(m, target)
}

// volatileOverlay: changes to the image go to memory.
func (o *outer) volatileOverlay() error {
	m, err := o.tmpfs("0755", "25%")
	if err != nil {
		return err
	}
	defer unix.Close(m)
	return o.overlayOn(m)
}

// ephemeralOverlay: changes to the image go to a directory of the host.
func (o *outer) ephemeralOverlay(dir string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	m, err := cloneTree(fd, false)
	if err != nil {
		return err
	}
	defer unix.Close(m)
	return o.overlayOn(m)
}

// overlayOn takes the root as the lower layer of an overlay whose upper one lies
// in the detached mount m. Submounts of the root are carried over.
func (o *outer) overlayOn(m int) error {
	var st unix.Stat_t
	if err := unix.Fstat(o.root.fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	lower, err := cloneTree(o.root.fd, false)
	if err != nil {
		return err
	}
	defer unix.Close(lower)
	if err := o.rebase(m); err != nil {
		return err
	}
	low, err := o.root.dir("/lower", 0o755)
	if err != nil {
		return err
	}
	err = attach(lower, low)
	_ = unix.Close(low)
	if err != nil {
		return err
	}
	o.asMachineRoot()
	err = errors.Join(o.root.mkdir("/upper", st.Mode&0o7777), o.root.mkdir("/work", 0o755))
	o.asHost()
	if err != nil {
		return err
	}
	overlay, err := newFS("overlay", "overlay", 0,
		option{"lowerdir", MountPoint + "/lower"},
		option{"upperdir", MountPoint + "/upper"},
		option{"workdir", MountPoint + "/work"},
		// Nobody reads the upper layer afterwards. Without this the kernel would write all of the
		// file system that it is on to the disk when the machine ends.
		option{"volatile", ""})
	if err != nil {
		return err
	}
	defer unix.Close(overlay)
	return o.rebase(overlay)
}

// pivotRoot makes a directory of the image the root, the old one visible in it.
func (o *outer) pivotRoot() error {
	r := &o.plan.Root
	dir, err := o.root.open(r.PivotNew, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("pivot root to %q: %w", r.PivotNew, err)
	}
	defer unix.Close(dir)
	m, err := cloneTree(dir, true)
	if err != nil {
		return fmt.Errorf("pivot root to %q: %w", r.PivotNew, err)
	}
	defer unix.Close(m)
	old := -1
	if r.PivotOld != "" {
		if old, err = cloneTree(o.root.fd, true); err != nil {
			return fmt.Errorf("pivot root to %q: %w", r.PivotNew, err)
		}
		defer unix.Close(old)
	}
	if err := o.rebase(m); err != nil {
		return fmt.Errorf("pivot root to %q: %w", r.PivotNew, err)
	}
	if old < 0 {
		return nil
	}
	o.asMachineRoot()
	target, err := o.root.dir(r.PivotOld, 0o755)
	o.asHost()
	if err != nil {
		return fmt.Errorf("place old root at %q: %w", r.PivotOld, err)
	}
	defer unix.Close(target)
	if err := attach(old, target); err != nil {
		return fmt.Errorf("place old root at %q: %w", r.PivotOld, err)
	}
	return nil
}

// customRoot puts a custom mount in the place of "/".
func (o *outer) customRoot() error {
	c := o.plan.Root.Custom
	m, err := o.customMount(c)
	if err != nil {
		return err
	}
	defer unix.Close(m)
	return o.rebase(m)
}

// within tells whether p is dir or below it.
func within(p, dir string) bool {
	p, dir = path.Clean(p), path.Clean(dir)
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}
