package stage

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// MountPoint is where the tree of a machine is put together, in a mount
// namespace that nobody else sees.
const MountPoint = "/run/systemd/nspawn/.root"

// Pins are complete copies of /proc and /sys, without which a user namespace
// may not mount its own (mount_too_revealing() of the kernel). Container's
// Unpin takes them away again.
const pinDir = "/run/host"

// securebits(7): keep capabilities when the file system UID changes.
const noSetuidFixup = 1 << 2

// IO are the descriptors that the payload starts with.
type IO struct {
	Stdin, Stdout, Stderr *os.File
	// Inherit are passed on as descriptors 3, 4, ... of the payload.
	Inherit []*os.File
	// Exe is the program that the inner stage executes: this one, sealed. It may
	// still be in the making.
	Exe func() (*os.File, error)
	// NetNS is joined by the machine when it is set.
	NetNS *os.File
	// Cgroup is where the first process is born, nil for where we are.
	Cgroup *os.File
	// Export is where the machine shows its sockets, nil for nowhere.
	Export *Export
	// Rooted is called on the thread that mounts, with the tree when it is complete.
	Rooted func(root int) error
}

// Container is a machine whose first process exists and waits.
type Container struct {
	PID    int
	PIDFD  int
	Master *os.File // console, nil without
	Notify *os.File // bound to /run/host/notify
	Chan   *Channel

	exit    chan struct{} // closed: the thread that cloned may end
	done    chan struct{}
	hostns  int // mount namespace that we came from
	hostDir int // /run/host of the machine
	works   []workDir
	creator chan func() // work on the thread inside the machine's first mount namespace
}

// outer is the work on the thread that builds the tree.
type outer struct {
	plan *Plan
	io   IO
	root tree
	c    *Container
	// console is the slave end of the PTY.
	console  int
	shifted  bool
	base     uint32
	idmap    int // user namespace for idmapped mounts, -1 none
	shiftDir func(rootfd int, base uint32) error
	warn     func(string, ...any)
}

// Start builds the machine's tree and clones its first process, which then
// waits for Channel messages. chown shifts a tree's ownership when it can't be
// mapped. On error nothing is left.
func Start(plan *Plan, io IO, chown func(rootfd int, base uint32) error, warn func(string, ...any)) (*Container, error) {
	c := &Container{
		exit: make(chan struct{}), done: make(chan struct{}), creator: make(chan func()),
		hostns: -1, hostDir: -1, PIDFD: -1,
	}
	result := make(chan error)
	go func() {
		defer close(c.done)
		// Never unlocked: the thread ends with the goroutine, and with it its
		// namespace. It must live as long as the machine (PR_SET_PDEATHSIG).
		runtime.LockOSThread()
		o := &outer{plan: plan, io: io, c: c, console: -1, idmap: -1, shiftDir: chown, warn: warn}
		err := o.run()
		result <- err
		if err != nil {
			return
		}
		for {
			select {
			case f := <-c.creator:
				f()
			case <-c.exit:
				return
			}
		}
	}()
	if err := <-result; err != nil {
		<-c.done
		c.closeFiles()
		return nil, err
	}
	return c, nil
}

func (c *Container) closeFiles() {
	for _, w := range c.works {
		w.remove()
	}
	for _, f := range []*os.File{c.Master, c.Notify} {
		if f != nil {
			_ = f.Close()
		}
	}
	if c.Chan != nil {
		c.Chan.Close()
	}
	for _, fd := range []int{c.PIDFD, c.hostns, c.hostDir} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// Close lets the thread end and closes the descriptors; the process must be reaped.
func (c *Container) Close() {
	close(c.exit)
	c.closeFiles()
}

// Adopt is a machine that another program has started.
func Adopt(pid, pidfd int, master, notify *os.File) *Container {
	return &Container{PID: pid, PIDFD: pidfd, Master: master, Notify: notify, hostns: -1, hostDir: -1}
}

// Portable tells whether the machine can be adopted: nothing but descriptors is
// left of its start.
func (c *Container) Portable() bool { return len(c.works) == 0 }

// Do runs f on the thread whose child the machine's first process is. The machine dies
// with that thread, so that it has to be the one that executes another program.
func (c *Container) Do(f func() error) error { return c.do(f) }

// do runs f on the thread that holds the machine's first mount namespace.
func (c *Container) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case c.creator <- func() { result <- f() }:
		return <-result
	case <-c.done:
		return errors.New("thread of the machine's mount namespace is gone")
	}
}

// Unpin removes the complete /proc and /sys from sight of the machine. Its own
// mount namespace is a slave of ours, so that the removal reaches it. Then our
// thread leaves, and the namespace ends: the machine's mounts are its own.
func (c *Container) Unpin() error {
	return c.do(func() error {
		for _, name := range []string{"/proc", "/sys"} {
			if err := unix.Unmount(pinDir+name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				return fmt.Errorf("unmount %s: %w", pinDir+name, err)
			}
			if err := unix.Unlinkat(c.hostDir, name[1:], unix.AT_REMOVEDIR); err != nil {
				return &os.PathError{Op: "remove", Path: pinDir + name, Err: err}
			}
		}
		if err := unix.Setns(c.hostns, unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("leave mount namespace of the set-up: %w", err)
		}
		for _, fd := range []*int{&c.hostDir, &c.hostns} {
			_ = unix.Close(*fd)
			*fd = -1
		}
		return nil
	})
}

func (o *outer) run() (err error) {
	if u := o.plan.Userns; u != nil {
		o.shifted, o.base = true, u.Base
	}
	defer func() {
		if o.console >= 0 {
			_ = unix.Close(o.console)
		}
		if o.idmap >= 0 {
			_ = unix.Close(o.idmap)
		}
	}()
	if o.c.hostns, err = unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open mount namespace: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	unix.Umask(0)
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts slaves: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noSetuidFixup, 0, 0, 0); err != nil {
		return fmt.Errorf("set secure bits: %w", err)
	}
	steps := []func() error{
		o.joinNetwork,
		o.attachRoot,
		o.baseDirs,
		o.protectRoot,
		o.apiMounts,
		o.devices,
		o.terminal,
		o.hostDir,
		o.credentials,
		o.bindUsers,
		o.customMounts,
		o.extraNodes,
		o.timezone,
		o.resolvConf,
		o.journal,
		o.readOnlyRoot,
		o.sealHostDir,
		o.switchRoot,
		o.clone,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// joinNetwork enters the network that the machine is to have, so that each sysfs
// mounted from now on shows that one.
func (o *outer) joinNetwork() error {
	if o.io.NetNS == nil {
		return nil
	}
	if err := unix.Setns(int(o.io.NetNS.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("join network namespace: %w", err)
	}
	return nil
}

// asMachineRoot makes files that this thread creates belong to the machine's
// root; asHost takes that back.
func (o *outer) asMachineRoot() {
	if o.shifted {
		_, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, uintptr(o.base), 0, 0)
		_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, uintptr(o.base), 0, 0)
	}
}

func (o *outer) asHost() {
	if o.shifted {
		_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, 0, 0, 0)
		_, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, 0, 0, 0)
	}
}

// hostRootOnDisk is the owner that files on an idmapped tree have on disk when
// the host's root made them (systemd's UID_MAPPED_ROOT). Without a map for it
// the host could not write into a running machine's tree at all.
const hostRootOnDisk = 2147483646

// idmapFD is a user namespace with the machine's map, for mount_setattr(2).
func (o *outer) idmapFD() (int, error) {
	if o.idmap >= 0 {
		return o.idmap, nil
	}
	maps := []Mapping{{0, o.base, o.plan.Userns.Count}}
	if o.base != 0 {
		maps = append(maps, Mapping{hostRootOnDisk, 0, 1})
	}
	fd, err := usernsFD(maps)
	if err == nil {
		o.idmap = fd
	}
	return fd, err
}

// usernsFD makes a user namespace with maps and returns a descriptor of it. The
// process it takes is stopped before its first instruction and killed. The
// thread must be locked: ptrace(2) belongs to threads.
func usernsFD(maps []Mapping) (int, error) { return usernsFDs(maps, maps) }

// usernsFDs is usernsFD with different maps of users and groups.
func usernsFDs(users, groups []Mapping) (int, error) {
	list := func(maps []Mapping) []syscall.SysProcIDMap {
		out := make([]syscall.SysProcIDMap, len(maps))
		for i, m := range maps {
			out[i] = syscall.SysProcIDMap{ContainerID: int(m.Inside), HostID: int(m.Outside), Size: int(m.Count)}
		}
		return out
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"userns"}, &syscall.ProcAttr{
		Files: []uintptr{},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER,
			UidMappings: list(users), GidMappings: list(groups), GidMappingsEnableSetgroups: true,
			Ptrace: true, Pdeathsig: syscall.SIGKILL,
		},
	})
	if err != nil {
		return -1, fmt.Errorf("make user namespace: %w", err)
	}
	defer func() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		for {
			var ws syscall.WaitStatus
			if _, err := syscall.Wait4(pid, &ws, unix.WALL, nil); errors.Is(err, unix.EINTR) {
				continue
			} else if err != nil || ws.Exited() || ws.Signaled() {
				return
			}
		}
	}()
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open user namespace: %w", err)
	}
	return fd, nil
}

// switchRoot makes the tree this namespace's root and its mounts shared, so that
// what is unmounted here later goes away in the machine's copy too.
func (o *outer) switchRoot() error {
	if err := unix.Fchdir(o.root.fd); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("switch root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach host root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	incoming := -1
	if o.plan.Propagate != "" {
		var err error
		if incoming, err = unix.Open(incomingDir, unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		defer unix.Close(incoming)
		// Slave first: what the machine does there must not get out.
		if err := setAttr(incoming, false, unix.MountAttr{Propagation: unix.MS_SLAVE}); err != nil {
			return fmt.Errorf("make incoming mounts slave: %w", err)
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return nil
}

// clone makes the machine's first process, which executes this program again.
func (o *outer) clone() error {
	ours, theirs, err := newChannel()
	if err != nil {
		return err
	}
	defer theirs.Close()
	o.c.Chan = ours
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("reset secure bits: %w", err)
	}
	flags := uintptr(unix.CLONE_NEWNS)
	p := o.plan
	for _, ns := range []struct {
		on   bool
		flag uintptr
	}{
		{!p.ShareIPC, unix.CLONE_NEWIPC},
		{!p.SharePID, unix.CLONE_NEWPID},
		{!p.ShareUTS, unix.CLONE_NEWUTS},
		{p.NewNet, unix.CLONE_NEWNET},
		{p.Userns != nil, unix.CLONE_NEWUSER},
	} {
		if ns.on {
			flags |= ns.flag
		}
	}
	var ambient []uintptr
	if p.Userns != nil {
		// Executing with a UID that has no map yet drops all but these.
		for n := range uintptr(lastCap() + 1) {
			ambient = append(ambient, n)
		}
	}
	files := []uintptr{o.io.Stdin.Fd(), o.io.Stdout.Fd(), o.io.Stderr.Fd()}
	if p.Console.PTY && p.Console.Attach {
		files = []uintptr{uintptr(o.console), uintptr(o.console), uintptr(o.console)}
	}
	for _, f := range o.io.Inherit {
		files = append(files, f.Fd())
	}
	exeNumber := len(files) + 1
	exe, err := o.io.Exe()
	if err != nil {
		return err
	}
	files = append(files, theirs.Fd(), exe.Fd())
	argv := []string{StageName, strconv.Itoa(len(files) - 2)}
	if p.PID2 && !p.SharePID {
		argv = append(argv, stageAgain)
	}
	pidfd := -1
	sys := &syscall.SysProcAttr{Cloneflags: flags, AmbientCaps: ambient, PidFD: &pidfd, Pdeathsig: syscall.SIGKILL}
	if cg := o.io.Cgroup; cg != nil {
		sys.UseCgroupFD, sys.CgroupFD = true, int(cg.Fd())
	}
	pid, err := syscall.ForkExec(pinDir+"/proc/self/fd/"+strconv.Itoa(exeNumber), argv, &syscall.ProcAttr{
		Dir: "/", Files: files, Env: []string{"GODEBUG=", "GOMAXPROCS=1", "GOGC=off"}, Sys: sys,
	})
	if err != nil {
		return fmt.Errorf("clone first process: %w", err)
	}
	o.c.PID, o.c.PIDFD = pid, pidfd
	return nil
}
