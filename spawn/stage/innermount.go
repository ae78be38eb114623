package stage

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

func (in *inner) proc() error {
	t := in.root
	if err := t.mountFS("/proc", "proc", nosuid|nodev|noexec); err != nil {
		return err
	}
	if err := t.mountFS("/dev/mqueue", "mqueue", nosuid|nodev|noexec); err != nil && !in.plan.ShareIPC {
		return err
	}
	if err := in.openLastPID(); err != nil {
		return err
	}
	if err := in.sysctls(); err != nil {
		return err
	}
	if in.plan.NewNet && in.plan.Userns != nil {
		// All groups of the machine may ping. A new network starts with IDs of the
		// host's, which say nothing here (icmp(7)).
		_ = os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 65535"), 0)
	}
	if in.plan.APIVFS == "yes" {
		return nil
	}
	if in.plan.PrivateNet || in.plan.APIVFS == "network" {
		if err := t.bindSelf("/proc/sys/net", true, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	// Read-only from above /proc/sys/net, which keeps its own mount.
	fd, err := t.open("/proc/sys", unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	m, err := cloneTree(fd, true)
	if err != nil {
		return fmt.Errorf("bind /proc/sys: %w", err)
	}
	defer unix.Close(m)
	if err := setAttr(m, false, unix.MountAttr{Attr_set: readonly | nosuid | nodev | noexec}); err != nil {
		return fmt.Errorf("make /proc/sys read-only: %w", err)
	}
	if err := attach(m, fd); err != nil {
		return fmt.Errorf("bind /proc/sys: %w", err)
	}
	for _, name := range []string{"kallsyms", "kcore", "keys", "sysrq-trigger", "timer_list"} {
		if err := maskPath(t, "/proc/"+name); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("hide /proc/%s: %w", name, err)
		}
	}
	for _, name := range []string{"acpi", "apm", "asound", "bus", "fs", "irq", "mtrr", "scsi"} {
		err := t.bindSelf("/proc/"+name, true, readonly|nosuid|nodev|noexec)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// sysfs shows the parts of /sys that belong to the machine's own network.
func (in *inner) sysfs() error {
	t := in.root
	if in.plan.PrivateNet {
		full := pinDir + "/sys"
		if in.plan.NewNet {
			full = "/sys/full"
			if err := t.mkdir(full, 0o755); err != nil {
				return err
			}
			if err := t.mountFS(full, "sysfs", nosuid|nodev|noexec); err != nil {
				return err
			}
		}
		attrs := uint64(readonly | nosuid | nodev | noexec)
		if in.plan.APIVFS == "yes" { // "network" is about /proc/sys/net
			attrs &^= readonly
		}
		for _, name := range []string{"block", "bus", "class", "dev", "devices", "kernel"} {
			if err := in.sysPart(full, name, attrs); err != nil {
				return fmt.Errorf("mount /sys/%s: %w", name, err)
			}
		}
		if in.plan.NewNet {
			if err := unix.Unmount(full, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				return fmt.Errorf("unmount %s: %w", full, err)
			}
			if err := unix.Rmdir(full); err != nil {
				return fmt.Errorf("remove %s: %w", full, err)
			}
		}
		if err := errors.Join(t.mkdir("/sys/fs/cgroup", 0o755), t.mkdir("/sys/fs/bpf", 0o755)); err != nil {
			return err
		}
		if in.plan.APIVFS == "yes" {
			return nil
		}
		// Not from below: a mount handed in by the host is locked.
		return in.sealSys()
	}
	return nil
}

func (in *inner) sealSys() error {
	fd, err := in.root.open("/sys", unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := setAttr(fd, false, unix.MountAttr{Attr_set: readonly}); err != nil {
		return fmt.Errorf("make /sys read-only: %w", err)
	}
	return nil
}

func (in *inner) sysPart(full, name string, attrs uint64) error {
	src, err := in.root.open(full+"/"+name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(src)
	target, err := in.root.dir("/sys/"+name, 0o755)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	m, err := cloneTree(src, false)
	if err != nil {
		return err
	}
	defer unix.Close(m)
	if err := setAttr(m, false, unix.MountAttr{Attr_set: attrs}); err != nil {
		return err
	}
	return attach(m, target)
}

// cgroup makes the payload's cgroup the root of what it sees.
func (in *inner) cgroup() error {
	if in.plan.CgroupNS {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("make cgroup namespace: %w", err)
		}
	}
	if in.plan.CgroupNS {
		return in.root.mountFS(cgroupRoot, "cgroup2", nosuid|nodev|noexec)
	}
	if in.plan.Userns == nil {
		if err := in.root.mountFS(cgroupRoot, "cgroup2", nosuid|nodev|noexec); err != nil {
			return err
		}
	}
	return in.ownCgroup()
}

const cgroupRoot = "/sys/fs/cgroup"

// ownCgroup leaves only the payload's part of the host's cgroups writable.
func (in *inner) ownCgroup() error {
	all, err := in.root.open(cgroupRoot, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(all)
	if p := unifiedCgroup(); p != "" && p != "/" {
		target, err := in.root.open(path.Join(cgroupRoot, p), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err == nil {
			defer unix.Close(target)
			m, err := cloneTree(target, false)
			if err != nil {
				return fmt.Errorf("bind cgroup %s: %w", p, err)
			}
			defer unix.Close(m)
			if err := attach(m, target); err != nil {
				return fmt.Errorf("bind cgroup %s: %w", p, err)
			}
		}
	}
	if err := setAttr(all, false, unix.MountAttr{Attr_set: readonly}); err != nil {
		return fmt.Errorf("make cgroups read-only: %w", err)
	}
	return nil
}

// unifiedCgroup is the cgroup that this process is in, "" for none (cgroups(7)).
func unifiedCgroup() string {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return p
		}
	}
	return ""
}

// procFiles puts a boot id of the machine's own, and a silent /proc/kmsg.
func (in *inner) procFiles() error {
	t := in.root
	bind := func(from, to string, attrs uint64) error {
		src, err := t.open(from, unix.O_PATH, 0)
		if err != nil {
			return err
		}
		defer unix.Close(src)
		target, err := t.open(to, unix.O_PATH, 0)
		if err != nil {
			return err
		}
		defer unix.Close(target)
		m, err := cloneTree(src, false)
		if err != nil {
			return err
		}
		defer unix.Close(m)
		if err := setAttr(m, false, unix.MountAttr{Attr_set: attrs}); err != nil {
			return err
		}
		return attach(m, target)
	}
	const bootID = "/run/.#proc-sys-kernel-random-boot-id"
	if err := t.write(bootID, []byte(newBootID()+"\n"), 0o444); err != nil {
		return fmt.Errorf("make boot id: %w", err)
	}
	err := bind(bootID, "/proc/sys/kernel/random/boot_id", readonly|nosuid|nodev|noexec)
	_ = unix.Unlink(bootID)
	if err != nil {
		return fmt.Errorf("bind boot id: %w", err)
	}
	fifo := "/run/.#proc-kmsg"
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		return fmt.Errorf("make kmsg fifo: %w", err)
	}
	err = bind(fifo, "/proc/kmsg", 0)
	_ = unix.Unlink(fifo)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("bind kmsg fifo: %w", err)
	}
	return nil
}

func newBootID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// lateBind binds a file of the machine's onto one in its /proc.
func (in *inner) lateBind(m *Mount) error {
	src, err := in.root.open(m.Sources[0].Path, unix.O_PATH, 0)
	if errors.Is(err, unix.ENOENT) {
		return wholeError{fmt.Errorf("Failed to stat %s: %w", m.Sources[0].Path, unix.ENOENT)}
	}
	if err != nil {
		return err
	}
	defer unix.Close(src)
	mount, err := cloneTree(src, m.Recursive)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	if m.IDMap != "" {
		return fmt.Errorf("owners of a mount in /proc can't be mapped: %w", unix.EINVAL)
	}
	if err := bindAttrs(mount, m); err != nil {
		return err
	}
	target, err := in.root.open(m.Dest, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return attach(mount, target)
}

// lateMounts are those that had to wait for our own /proc, and OCI's masks.
func (in *inner) lateMounts() error {
	for i := range in.plan.Mounts {
		m := &in.plan.Mounts[i]
		if !inProc(m.Dest) {
			continue
		}
		var err error
		switch m.Kind {
		case "inaccessible":
			err = maskPath(in.root, m.Dest)
		case "tmpfs":
			attrs, opts := splitAttrs(parseOptions(m.Options))
			err = in.root.mountFS(m.Dest, "tmpfs", attrs, opts...)
		case "bind":
			if m.late() {
				err = in.lateBind(m)
			}
		}
		if whole := (wholeError{}); errors.As(err, &whole) && !m.Graceful {
			return err
		}
		if err != nil && !m.Graceful {
			return fmt.Errorf("mount on %s: %w", m.Dest, err)
		}
	}
	for _, p := range in.plan.MaskedPaths {
		if err := maskPath(in.root, p); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mask %s: %w", p, err)
		}
	}
	for _, p := range in.plan.ROPaths {
		err := in.root.bindSelf(p, true, readonly)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return in.propagate("/", false, in.plan.Propagation)
}
