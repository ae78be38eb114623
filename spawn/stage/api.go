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

const (
	nosuid   = unix.MOUNT_ATTR_NOSUID
	nodev    = unix.MOUNT_ATTR_NODEV
	noexec   = unix.MOUNT_ATTR_NOEXEC
	readonly = unix.MOUNT_ATTR_RDONLY
	strict   = unix.MOUNT_ATTR_STRICTATIME
)

// apiMounts mounts what belongs to no user namespace: /dev, /run, /tmp, and /sys
// when the machine shares the host's network.
func (o *outer) apiMounts() error {
	t := o.root
	type entry struct {
		where, mode, size, inodes string
		attrs                     int
		on                        bool
	}
	for _, e := range []entry{
		{"/tmp", "1777", "10%", "400k", nosuid | nodev | strict, o.plan.TmpfsTmp},
		{"/dev", "0755", "4m", "65536", nosuid | strict, true},
		{"/dev/shm", "1777", "10%", "400k", nosuid | nodev | strict, true},
		{"/run", "0755", "20%", "800k", nosuid | nodev | strict, true},
	} {
		if !e.on || (!within(e.where, "/dev") && t.isMountPoint(e.where)) {
			continue
		}
		o.asMachineRoot()
		err := t.mkdir(e.where, 0o755)
		o.asHost()
		if err != nil {
			return fmt.Errorf("mount %s: %w", e.where, err)
		}
		if err := t.mountFS(e.where, "tmpfs", e.attrs, tmpfsOptions(e.mode, e.size, e.inodes, o.base, o.shifted)...); err != nil {
			return err
		}
	}
	if o.plan.PrivateNet {
		err := t.mountFS("/sys", "tmpfs", nosuid|nodev|noexec, tmpfsOptions("0555", "4m", "1024", o.base, o.shifted)...)
		if err != nil {
			return err
		}
		return o.hostCgroups()
	}
	attrs := nosuid | nodev | noexec
	if o.plan.APIVFS != "yes" {
		attrs |= readonly
	}
	if err := t.mountFS("/sys", "sysfs", attrs); err != nil {
		return err
	}
	return o.hostCgroups()
}

// hostCgroups mounts the host's cgroups for a machine that has no cgroup namespace
// of its own and, being in a user namespace, may not mount them itself.
func (o *outer) hostCgroups() error {
	if o.plan.CgroupNS || o.plan.Userns == nil {
		return nil
	}
	o.asMachineRoot()
	err := o.root.mkdir("/sys/fs/cgroup", 0o755)
	o.asHost()
	if err != nil {
		return err
	}
	return o.root.mountFS("/sys/fs/cgroup", "cgroup2", nosuid|nodev|noexec)
}

// node is one device of /dev.
type node struct {
	name         string
	major, minor uint32
	optional     bool
}

var standardNodes = []node{
	{"null", 1, 3, false}, {"zero", 1, 5, false}, {"full", 1, 7, false}, {"random", 1, 8, false},
	{"urandom", 1, 9, false}, {"tty", 5, 0, false}, {"net/tun", 10, 200, true}, {"fuse", 10, 229, true},
}

// devices fills /dev.
func (o *outer) devices() error {
	o.asMachineRoot()
	defer o.asHost()
	t := o.root
	dev, err := t.dir("/dev", 0o755)
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	in := tree{dev}
	for _, n := range standardNodes {
		if err := o.deviceNode(in, n); err != nil {
			return err
		}
	}
	for _, l := range []struct{ name, target string }{
		{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"},
		{"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"},
	} {
		if err := in.symlink(l.target, l.name); err != nil {
			return err
		}
	}
	if _, err := os.Lstat("/proc/kcore"); err == nil {
		_ = in.symlink("/proc/kcore", "core")
	}
	for _, d := range []string{"pts", "mqueue"} {
		if err := in.mkdir(d, 0o755); err != nil {
			return err
		}
	}
	gid := uint32(5)
	if o.shifted {
		gid += o.base
	}
	o.asHost()
	if err := in.mountFS("pts", "devpts", nosuid|noexec,
		option{"newinstance", ""}, option{"ptmxmode", "0666"}, option{"mode", "0600"},
		option{"gid", strconv.FormatUint(uint64(gid), 10)}); err != nil {
		return err
	}
	if o.shifted {
		// devpts gives itself and its ptmx to the root of the mounting namespace.
		for _, name := range []string{"pts", "pts/ptmx"} {
			if fd, err := in.open(name, unix.O_PATH, 0); err == nil {
				_ = unix.Fchownat(fd, "", int(o.base), int(o.base), unix.AT_EMPTY_PATH)
				_ = unix.Close(fd)
			}
		}
	}
	return nil
}

func (o *outer) deviceNode(in tree, n node) error {
	number := unix.Mkdev(n.major, n.minor)
	host := "/dev/" + n.name
	var st unix.Stat_t
	err := unix.Stat(host, &st)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		if n.optional {
			return nil
		}
		return &os.PathError{Op: "stat", Path: host, Err: unix.ENODEV}
	}
	if n.optional {
		// The device policy of our unit may forbid it: then it must not be there.
		fd, err := unix.Open(host, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil
		}
		_ = unix.Close(fd)
	}
	dir := in
	if d := path.Dir(n.name); d != "." {
		fd, err := in.dir(d, 0o755)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		dir = tree{fd}
	}
	name := path.Base(n.name)
	if err := unix.Mknodat(dir.fd, name, st.Mode, int(number)); err == nil {
		// The host's mode, whatever the umask.
		if fd, err := dir.open(name, unix.O_PATH, 0); err == nil {
			_ = unix.Chmod(procFD(fd), st.Mode&0o7777)
			_ = unix.Close(fd)
		}
	} else if !errors.Is(err, unix.EEXIST) {
		// No right to make nodes: show the host's.
		if err := bindHostFile(dir, host, name); err != nil {
			return fmt.Errorf("make %s: %w", host, err)
		}
	}
	link := fmt.Sprintf("char/%d:%d", n.major, n.minor)
	return in.symlink("../"+n.name, link)
}

// bindHostFile shows the host's file at name of a tree.
func bindHostFile(in tree, host, name string) error {
	src, err := unix.Open(host, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	target, err := in.node(name)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	m, err := cloneTree(src, false)
	if err != nil {
		return err
	}
	defer unix.Close(m)
	return attach(m, target)
}

// terminal allocates the console in the machine's own devpts.
func (o *outer) terminal() error {
	p := o.plan.Console
	if !p.PTY {
		return nil
	}
	o.asMachineRoot()
	defer o.asHost()
	master, err := o.root.open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("allocate console: %w", err)
	}
	o.c.Master = os.NewFile(uintptr(master), "console")
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock console: %w", err)
	}
	number, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("allocate console: %w", err)
	}
	if p.Rows > 0 || p.Cols > 0 {
		_ = unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: p.Rows, Col: p.Cols})
	}
	name := "/dev/pts/" + strconv.Itoa(number)
	slave, err := o.root.open(name, unix.O_PATH, 0)
	if err != nil {
		return fmt.Errorf("open console: %w", err)
	}
	defer unix.Close(slave)
	if o.shifted {
		_ = unix.Fchownat(slave, "", int(o.base), int(o.base+5), unix.AT_EMPTY_PATH)
	}
	if o.console, err = o.root.open(name, unix.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return fmt.Errorf("open console: %w", err)
	}
	return o.root.symlink("pts/"+strconv.Itoa(number), "/dev/console")
}

// hostDir fills /run/host, which is a mount of its own from the start.
func (o *outer) hostDir() error {
	t := o.root
	o.asMachineRoot()
	err := t.mkdir("/run/host", 0o755)
	o.asHost()
	if err != nil {
		return err
	}
	// Reached through /run, which stays writable, so that the pins' mount points can go.
	if o.c.hostDir, err = t.open("/run/host", unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return err
	}
	if err := t.bindSelf("/run/host", false, 0); err != nil {
		return err
	}
	if err := o.inaccessibleNodes(); err != nil {
		return err
	}
	o.asMachineRoot()
	err = errors.Join(
		t.write("/run/host/container-manager", []byte(o.plan.Manager+"\n"), 0o444),
		t.write("/run/host/container-uuid", []byte(o.plan.UUID+"\n"), 0o444),
		t.mkdir("/run/host/proc", 0o555),
		t.mkdir("/run/host/sys", 0o555),
	)
	o.asHost()
	if err != nil {
		return err
	}
	if err := t.mountFS("/run/host/proc", "proc", nosuid|nodev|noexec); err != nil {
		return err
	}
	if err := t.mountFS("/run/host/sys", "sysfs", nosuid|nodev|noexec); err != nil {
		return err
	}
	if o.plan.Nesting {
		if err := o.nestingDir(); err != nil {
			return err
		}
	}
	if o.plan.OSRelease != "" {
		// A copy: root of a machine without a user namespace could make a mount of
		// the host's own file writable.
		o.asMachineRoot()
		err := o.copyHost("/run/host/os-release", o.plan.OSRelease)
		o.asHost()
		if err == nil {
			err = t.bindSelf("/run/host/os-release", false, readonly|nosuid|nodev|noexec)
		}
		if err == nil {
			err = o.attrs("/run/host/os-release", unix.MountAttr{Propagation: unix.MS_PRIVATE})
		}
		if err != nil {
			return fmt.Errorf("show os-release: %w", err)
		}
	}
	if err := o.tunnel(); err != nil {
		return err
	}
	return o.notifySocket()
}

func (o *outer) attrs(p string, attr unix.MountAttr) error {
	fd, err := o.root.open(p, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := setAttr(fd, false, attr); err != nil {
		return fmt.Errorf("set mount attributes of %s: %w", p, err)
	}
	return nil
}

// tunnel is the directory through which the host hands mounts in.
func (o *outer) tunnel() error {
	if o.io.Export != nil {
		if err := o.unixExport(); err != nil {
			return err
		}
	}
	if err := o.root.mkdir(incomingDir, 0o600); err != nil {
		return err
	}
	target, err := o.root.open(incomingDir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	src := target // where the host hands nothing in, it looks the same
	if o.plan.Propagate != "" {
		src, err = unix.Open(o.plan.Propagate, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: o.plan.Propagate, Err: err}
		}
		defer unix.Close(src)
	}
	mount, err := cloneTree(src, false)
	if err != nil {
		return fmt.Errorf("bind %s: %w", o.plan.Propagate, err)
	}
	defer unix.Close(mount)
	if err := setAttr(mount, false, unix.MountAttr{Attr_set: readonly}); err != nil {
		return fmt.Errorf("set mount attributes of %s: %w", incomingDir, err)
	}
	if o.plan.Propagate != "" && o.plan.Userns == nil {
		if err := disown(mount); err != nil {
			return err
		}
	}
	return attach(mount, target)
}

// nobody is the user and group that own nothing.
const nobody = 65534

// disown makes the files of a detached mount nobody's, whom not even the host's root
// can stand in for there: root of a machine without a user namespace can make the
// mount writable, and still not write. File systems that map no owners (tmpfs before
// 6.3) stay as they are.
func disown(mount int) error {
	fd, err := usernsFD([]Mapping{{nobody, nobody, 1}})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = setAttr(mount, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(fd)})
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("take the owner off incoming mounts: %w", err)
	}
	return nil
}

func (o *outer) notifySocket() error {
	dir, err := o.root.open("/run/host", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	o.c.Notify = os.NewFile(uintptr(fd), "/run/host/notify")
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: procFD(dir) + "/notify"}); err != nil {
		return fmt.Errorf("bind notification socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		return fmt.Errorf("set up notification socket: %w", err)
	}
	// Writing is all that a sender needs.
	_ = unix.Fchmodat(dir, "notify", 0o200, 0)
	if o.shifted {
		_ = unix.Fchownat(dir, "notify", int(o.base), int(o.base), unix.AT_SYMLINK_NOFOLLOW)
	}
	return nil
}

// inaccessibleNodes are what masks are made of, one of each type.
func (o *outer) inaccessibleNodes() error {
	o.asMachineRoot()
	defer o.asHost()
	if err := o.root.mkdir("/run/host/inaccessible", 0o755); err != nil {
		return err
	}
	fd, err := o.root.open("/run/host/inaccessible", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, n := range []struct {
		name string
		mode uint32
	}{{"reg", unix.S_IFREG}, {"fifo", unix.S_IFIFO}, {"sock", unix.S_IFSOCK}, {"chr", unix.S_IFCHR}, {"blk", unix.S_IFBLK}} {
		if err := unix.Mknodat(fd, n.name, n.mode, 0); err != nil && n.mode != unix.S_IFCHR && n.mode != unix.S_IFBLK {
			return fmt.Errorf("make inaccessible %s: %w", n.name, err)
		}
	}
	if err := unix.Mkdirat(fd, "dir", 0); err != nil {
		return fmt.Errorf("make inaccessible dir: %w", err)
	}
	return os.NewSyscallError("fchmod", unix.Chmod(procFD(fd), 0o555))
}

// sealHostDir makes /run/host read-only.
func (o *outer) sealHostDir() error {
	return o.attrs("/run/host", unix.MountAttr{Attr_set: readonly | nosuid | nodev | noexec})
}

// credentials writes them to a read-only file system that never swaps.
func (o *outer) credentials() error {
	if len(o.plan.Credentials) == 0 {
		return nil
	}
	dirMode, fileMode := uint32(0o500), uint32(0o400)
	if o.plan.CredsOpen {
		dirMode, fileMode = 0o555, 0o444
	}
	const where = "/run/host/credentials"
	o.asMachineRoot()
	err := o.root.mkdir(where, 0o755)
	o.asHost()
	if err != nil {
		return err
	}
	if err := o.root.mountFS(where, "ramfs", nosuid|nodev|noexec, option{"mode", "0700"}); err != nil {
		return err
	}
	for _, c := range o.plan.Credentials {
		name := path.Join(where, c.ID)
		if err := o.root.write(name, c.Data, fileMode); err != nil {
			return fmt.Errorf("write credential %q: %w", c.ID, err)
		}
		if o.shifted {
			if err := o.chown(name); err != nil {
				return err
			}
		}
	}
	fd, err := o.root.open(where, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if o.shifted {
		if err := unix.Fchown(fd, int(o.base), int(o.base)); err != nil {
			return fmt.Errorf("chown %s: %w", where, err)
		}
	}
	if err := unix.Fchmod(fd, dirMode); err != nil {
		return fmt.Errorf("chmod %s: %w", where, err)
	}
	return o.attrs(where, unix.MountAttr{Attr_set: readonly | nosuid | nodev | noexec})
}

func (o *outer) chown(p string) error {
	fd, err := o.root.open(p, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchownat(fd, "", int(o.base), int(o.base), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("chown %s: %w", p, err)
	}
	return nil
}

// lastCap is the highest capability that the kernel knows.
func lastCap() int {
	data, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && n < 64 {
			return n
		}
	}
	return 40
}
