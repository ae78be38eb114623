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

// inProc tells whether a mount has to wait for the machine's own /proc.
func inProc(p string) bool { return within(p, "/proc") || within(p, "/sys") }

// late tells whether a bind mount lies on the machine's own /proc, which is there
// when the host's files no longer are: its source is the machine's, as with stock.
func (m *Mount) late() bool { return m.Kind == "bind" && m.Dest != "/proc" && within(m.Dest, "/proc") }

// customMounts does the mounts that the user asked for, shorter paths first.
func (o *outer) customMounts() error {
	for i := range o.plan.Mounts {
		m := &o.plan.Mounts[i]
		if m.Dest == "/" {
			continue
		}
		if inProc(m.Dest) && (m.Kind == "inaccessible" || m.Kind == "tmpfs") || m.late() {
			continue // the inner stage does those
		}
		if err := o.mountCustom(m); err != nil {
			if m.Graceful {
				o.warn("Ignoring mount on %s: %v", m.Dest, err)
				continue
			}
			if whole := (wholeError{}); errors.As(err, &whole) {
				return err
			}
			return fmt.Errorf("mount on %s: %w", m.Dest, err)
		}
	}
	return nil
}

// wholeError is an error that says by itself which mount it is about.
type wholeError struct{ error }

func (w wholeError) Unwrap() error { return w.error }

func (o *outer) mountCustom(m *Mount) error {
	if m.Kind == "inaccessible" {
		err := maskPath(o.root, m.Dest)
		if errors.Is(err, unix.ENOENT) {
			err = wholeError{fmt.Errorf("Failed to resolve %s: %w", m.Dest, unix.ENOENT)}
		}
		return err
	}
	mount, err := o.customMount(m)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	o.asMachineRoot()
	var target int
	if isDir(mount) {
		target, err = o.root.dir(m.Dest, 0o755)
	} else {
		target, err = o.root.node(m.Dest)
	}
	o.asHost()
	if errors.Is(err, unix.ENOTDIR) && m.Kind == "bind" && isDir(mount) {
		return wholeError{fmt.Errorf("Cannot bind mount directory %s on file %s.", m.Sources[0].Path, m.Dest)}
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	if isDir(mount) != isDir(target) {
		return wholeError{fmt.Errorf("Cannot bind mount file %s on directory %s.", m.Sources[0].Path, m.Dest)}
	}
	if m.IDMap == "owneridmap" {
		if err := o.ownerMap(mount, target, m.Recursive); err != nil {
			return err
		}
	}
	return attach(mount, target)
}

// customMount makes the mount, detached.
func (o *outer) customMount(m *Mount) (int, error) {
	switch m.Kind {
	case "bind":
		return o.bindMount(m)
	case "tmpfs":
		return o.tmpfsMount(m)
	case "overlay":
		return o.overlayMount(m)
	case "arbitrary":
		attrs, opts := splitAttrs(parseOptions(m.Options))
		if m.FSType == "tmpfs" {
			opts = o.shiftOwner(opts)
		}
		return newFS(m.FSType, m.Sources[0].Path, attrs, opts...)
	}
	return -1, fmt.Errorf("mount kind %q is unknown", m.Kind)
}

// shiftOwner makes the owner of a filesystem, which is meant as seen from inside,
// that of the host.
func (o *outer) shiftOwner(opts []option) []option {
	if !o.shifted {
		return opts
	}
	for _, key := range []string{"uid", "gid"} {
		found := false
		for i, p := range opts {
			if n, err := strconv.ParseUint(p.value, 10, 32); p.key == key && err == nil {
				opts[i].value, found = strconv.FormatUint(n+uint64(o.base), 10), true
			}
		}
		if !found {
			opts = append(opts, option{key, strconv.FormatUint(uint64(o.base), 10)})
		}
	}
	return opts
}

// source opens a source as O_PATH.
func (o *outer) source(s Source) (int, error) {
	var fd int
	var err error
	if s.Inside {
		fd, err = o.root.open(s.Path, unix.O_PATH, 0)
		if path := (*os.PathError)(nil); errors.As(err, &path) {
			err = path.Err
		}
	} else {
		fd, err = unix.Open(s.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return -1, wholeError{fmt.Errorf("Failed to stat %s: %w", s.Path, err)}
	}
	return fd, nil
}

func (o *outer) bindMount(m *Mount) (int, error) {
	src, err := o.source(m.Sources[0])
	if err != nil {
		return -1, err
	}
	defer unix.Close(src)
	mount, err := cloneTree(src, m.Recursive)
	if err != nil {
		return -1, err
	}
	if err := o.mapBind(mount, m); err != nil {
		_ = unix.Close(mount)
		return -1, err
	}
	if err := bindAttrs(mount, m); err != nil {
		_ = unix.Close(mount)
		return -1, err
	}
	return mount, nil
}

func bindAttrs(mount int, m *Mount) error {
	set, rest := splitAttrs(parseOptions(m.Options))
	if len(rest) > 0 {
		return fmt.Errorf("option %q is none of a bind mount: %w", rest[0].key, unix.EINVAL)
	}
	if m.ReadOnly {
		set |= readonly
	}
	attr := unix.MountAttr{Attr_set: uint64(set)}
	if set&unix.MOUNT_ATTR__ATIME != 0 {
		attr.Attr_clr = unix.MOUNT_ATTR__ATIME
	}
	if set == 0 {
		return nil
	}
	return setAttr(mount, m.Recursive, attr)
}

func (o *outer) mapBind(mount int, m *Mount) error {
	switch m.IDMap {
	case "idmap":
		if o.base == 0 {
			return nil // the same on both sides
		}
		fd, err := o.idmapFD()
		if err != nil {
			return err
		}
		return o.setMap(mount, fd, m.Recursive)
	case "rootidmap":
		return o.mapOwner(mount, o.base, o.base, m.Recursive)
	}
	return nil
}

// ownerMap makes the owner of the source appear as the owner of the target.
func (o *outer) ownerMap(mount, target int, recursive bool) error {
	var to unix.Stat_t
	if err := unix.Fstat(target, &to); err != nil {
		return err
	}
	return o.mapOwner(mount, to.Uid, to.Gid, recursive)
}

// mapOwner makes the owner and group of a mount's root appear as the host's uid
// and gid, and all others as nobody's. Without a user namespace an owner who stays
// the same leaves nothing to map.
func (o *outer) mapOwner(mount int, uid, gid uint32, recursive bool) error {
	var from unix.Stat_t
	if err := unix.Fstat(mount, &from); err != nil {
		return err
	}
	if !o.shifted && from.Uid == uid && from.Gid == gid {
		return nil
	}
	fd, err := usernsFDs([]Mapping{{from.Uid, uid, 1}}, []Mapping{{from.Gid, gid, 1}})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return o.setMap(mount, fd, recursive)
}

func (o *outer) setMap(mount, userns int, recursive bool) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)}
	err := setAttr(mount, recursive, attr)
	if err != nil && recursive {
		err = setAttr(mount, false, attr)
	}
	if err != nil {
		return fmt.Errorf("map ownership of bind mount: %w", err)
	}
	return nil
}

func (o *outer) tmpfsMount(m *Mount) (int, error) {
	attrs, opts := splitAttrs(parseOptions("nodev,strictatime," + m.Options))
	if m.Options == "" { // else the file system's default, as with mount(8)
		opts = append(opts, option{"mode", "0755"})
	}
	opts = o.shiftOwner(opts)
	if m.ReadOnly {
		attrs |= readonly
	}
	return newFS("tmpfs", "tmpfs", attrs, opts...)
}

// splitAttrs takes the options that belong to a mount, not to its filesystem.
// Later ones win.
func splitAttrs(opts []option) (attrs int, rest []option) {
	const atime = unix.MOUNT_ATTR__ATIME
	known := map[string]struct{ clear, set int }{
		"ro": {0, readonly}, "nosuid": {0, nosuid}, "nodev": {0, nodev}, "noexec": {0, noexec},
		"rw": {readonly, 0}, "suid": {nosuid, 0}, "dev": {nodev, 0}, "exec": {noexec, 0},
		"strictatime": {atime, strict}, "noatime": {atime, unix.MOUNT_ATTR_NOATIME}, "relatime": {atime, 0},
		"nodiratime": {0, unix.MOUNT_ATTR_NODIRATIME}, "diratime": {unix.MOUNT_ATTR_NODIRATIME, 0}, "defaults": {0, 0},
	}
	for _, o := range opts {
		if a, ok := known[o.key]; ok && o.value == "" {
			attrs = attrs&^a.clear | a.set
			continue
		}
		rest = append(rest, o)
	}
	return attrs, rest
}

func (o *outer) overlayMount(m *Mount) (int, error) {
	var held []int
	defer func() {
		for _, fd := range held {
			_ = unix.Close(fd)
		}
	}()
	// name is a source as an option, short and without what would have to be
	// escaped: what is in the image is resolved beneath it.
	name := func(s Source) (string, error) {
		if !s.Inside {
			fd, err := unix.Open(s.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return "", wholeError{fmt.Errorf("Failed to stat %s: %w", s.Path, err)}
			}
			held = append(held, fd)
			return procFD(fd), nil
		}
		o.asMachineRoot()
		fd, err := o.root.dir(s.Path, 0o755)
		o.asHost()
		if err != nil {
			return "", err
		}
		held = append(held, fd)
		return procFD(fd), nil
	}
	lowers, opts := m.Sources, []option(nil)
	if !m.ReadOnly {
		last := m.Sources[len(m.Sources)-1]
		lowers = m.Sources[:len(m.Sources)-1]
		upper, err := name(last)
		if err != nil {
			return -1, err
		}
		var work string
		if last.Inside {
			work, err = o.innerWork(held[len(held)-1])
		} else {
			work, err = name(Source{Path: m.WorkDir})
		}
		if err != nil {
			return -1, fmt.Errorf("make work directory of overlay: %w", err)
		}
		opts = []option{{"upperdir", upper}, {"workdir", work}}
	}
	var names []string
	// The option lists the top layer first, the plan the bottom one.
	for i := len(lowers) - 1; i >= 0; i-- {
		n, err := name(lowers[i])
		if err != nil {
			return -1, err
		}
		names = append(names, n)
	}
	attrs := 0
	if m.ReadOnly {
		attrs = readonly
	}
	lower := []option{{"lowerdir", strings.Join(names, ":")}}
	if len(lower[0].value) > fsconfigMax { // layer by layer, which kernels before 6.5 can't
		lower = nil
		for _, n := range names {
			lower = append(lower, option{"lowerdir+", n})
		}
	}
	return newFS("overlay", "overlay", attrs, append(lower, opts...)...)
}

// fsconfigMax is how long a value of fsconfig(2) may be.
const fsconfigMax = 255

// innerWork makes the work directory of an overlay beside its upper directory in
// the image, where a link of the image can't lead it elsewhere. It has always the
// same name, so that a run that was killed leaves nothing behind for good.
func (o *outer) innerWork(upper int) (string, error) {
	where, err := os.Readlink(procFD(upper))
	if err != nil {
		return "", err
	}
	in, ok := strings.CutPrefix(where, MountPoint+"/")
	if !ok {
		return "", fmt.Errorf("the upper directory %s is not below the root: %w", where, unix.EXDEV)
	}
	parent, err := o.root.open(path.Dir(in), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	work := ".#nspawn-work-" + path.Base(in)
	o.asMachineRoot()
	err = unix.Mkdirat(parent, work, 0o700)
	o.asHost()
	if err != nil && !errors.Is(err, unix.EEXIST) {
		_ = unix.Close(parent)
		return "", err
	}
	o.c.works = append(o.c.works, workDir{parent, work})
	fd, err := unix.Openat(parent, work, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	_ = unix.Close(fd)
	return procFD(parent) + "/" + work, nil
}

// workDir is a directory to be removed at the end.
type workDir struct {
	parent int
	name   string
}

func (w workDir) remove() {
	_ = os.RemoveAll(procFD(w.parent) + "/" + w.name)
	_ = unix.Close(w.parent)
}

// maskPath hides a path of a tree behind a node of its own kind; a path that is
// missing is an error for the caller to judge.
func maskPath(t tree, p string) error {
	target, err := t.open(p, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	var st unix.Stat_t
	if err := unix.Fstat(target, &st); err != nil {
		return err
	}
	names := map[uint32][]string{
		unix.S_IFREG: {"reg"}, unix.S_IFDIR: {"dir"}, unix.S_IFIFO: {"fifo"}, unix.S_IFSOCK: {"sock"},
		unix.S_IFCHR: {"chr", "reg"}, unix.S_IFBLK: {"blk", "reg"},
	}
	for _, name := range names[st.Mode&unix.S_IFMT] {
		src, err := t.open("/run/host/inaccessible/"+name, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		m, err := cloneTree(src, false)
		_ = unix.Close(src)
		if err != nil {
			return err
		}
		err = setAttr(m, false, unix.MountAttr{Attr_set: readonly})
		if err == nil {
			err = attach(m, target)
		}
		_ = unix.Close(m)
		return err
	}
	return fmt.Errorf("hide %s: no node of its type", p)
}
