package host

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Names under which the test binary runs itself again.
const (
	stageArg  = "machined-test-host"
	reaperArg = "machined-test-reaper"
)

// init diverts a re-executed test binary before any test code runs.
func init() {
	switch os.Args[0] {
	case stageArg:
		runtime.LockOSThread()
		if err := runStage(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, "set up test host:", err)
			os.Exit(1)
		}
	case reaperArg:
		if err := reap(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, "remove test host:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// stageSpec is what the stage needs to know; it comes as its first argument.
type stageSpec struct {
	Name  string
	Lower []string // overlay layers, topmost first
	Dir   string   // upper, work, root, machines, vartmp
}

// mount is one line of the table below.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

// runStage runs as PID 1 of the new namespaces: it makes the root and becomes
// systemd. It starts in the cgroup that is to be the root of the host's.
func runStage(arg string) error {
	var s stageSpec
	if err := json.Unmarshal([]byte(arg), &s); err != nil {
		return err
	}
	root := filepath.Join(s.Dir, "root")
	// Only now, in the right cgroup: the namespace's root is where one is when it is made.
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	bind := uintptr(unix.MS_BIND)
	table := []mount{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""},
		// volatile: the upper layer never outlives the host, so nothing need be synced.
		{
			"overlay", root, "overlay", 0, "volatile,lowerdir=" + strings.Join(s.Lower, ":") +
				",upperdir=" + filepath.Join(s.Dir, "upper") + ",workdir=" + filepath.Join(s.Dir, "work"),
		},
		// Machines, and the overlay work folders that nspawn puts into /var/tmp, cannot live on an overlay.
		{filepath.Join(s.Dir, "machines"), root + "/var/lib/machines", "", bind, ""},
		{filepath.Join(s.Dir, "vartmp"), root + "/var/tmp", "", bind, ""},
		{"tmpfs", root + "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"tmpfs", root + "/tmp", "tmpfs", 0, "mode=1777"},
		{"proc", root + "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", root + "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"cgroup2", root + "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", root + "/dev", "tmpfs", unix.MS_NOSUID, "mode=755"},
		{"devpts", root + "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5"},
		{"tmpfs", root + "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	}
	for _, m := range table {
		if m.target != "/" {
			if err := os.MkdirAll(m.target, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return &os.PathError{Op: "mount", Path: m.target, Err: err}
		}
	}
	if err := makeDev(root + "/dev"); err != nil {
		return err
	}
	if err := identify(root, s); err != nil {
		return err
	}
	if err := enterRoot(root); err != nil {
		return err
	}
	env := []string{
		"container=machined-test", "TERM=linux", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"NOTIFY_SOCKET=/run/host/notify",
	}
	return os.NewSyscallError("execve", unix.Exec("/lib/systemd/systemd", []string{"/lib/systemd/systemd", "--log-target=journal"}, env))
}

// identify gives the host its name, machine id and notification socket.
func identify(root string, s stageSpec) error {
	if err := unix.Sethostname([]byte(s.Name)); err != nil {
		return os.NewSyscallError("sethostname", err)
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return err
	}
	files := map[string]string{
		"/etc/hostname":   s.Name + "\n",
		"/etc/hosts":      "127.0.0.1 localhost\n127.0.1.1 " + s.Name + "\n",
		"/etc/machine-id": strings.ReplaceAll(string(id), "-", ""),
	}
	for name, text := range files {
		if err := os.WriteFile(root+name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	socket := root + "/run/host/notify"
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		return err
	}
	if err := unix.Mount(filepath.Join(s.Dir, "notify"), socket, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "mount", Path: socket, Err: err}
	}
	return linkUp("lo")
}

// makeDev makes nodes of the host's own for the devices of this machine: loop
// devices are machine-wide, and systemd compares numbers of real nodes.
func makeDev(dev string) error {
	for _, name := range []string{
		"null", "zero", "full", "random", "urandom", "tty", "fuse", "loop-control",
		"btrfs-control", "kvm", "net/tun", "vhost-vsock", "vsock",
	} {
		var st unix.Stat_t
		if unix.Stat("/dev/"+name, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
			continue
		}
		if err := mknod(filepath.Join(dev, name), unix.S_IFCHR|0o666, st.Rdev); err != nil {
			return err
		}
	}
	for i := range 64 {
		if err := mknod(filepath.Join(dev, "loop"+strconv.Itoa(i)), unix.S_IFBLK|0o660, unix.Mkdev(7, uint32(i))); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0",
		"stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(to, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	return nil
}

func mknod(path string, mode uint32, dev uint64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := unix.Mknod(path, mode, int(dev)); err != nil {
		return &os.PathError{Op: "mknod", Path: path, Err: err}
	}
	return os.Chmod(path, os.FileMode(mode&0o777))
}

// enterRoot pivots and makes the root shared, as PID 1 does on a machine of
// its own: without that no bind can be propagated into a running machine.
func enterRoot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return os.NewSyscallError("umount2", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return os.NewSyscallError("mount", unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""))
}

func linkUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return os.NewSyscallError("ioctl", unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr))
}
