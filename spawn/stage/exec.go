package stage

import (
	"errors"
	"fmt"
	"path"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DefaultPath is the payload's $PATH.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// passwd is one user of the machine.
type passwd struct {
	name, home, shell string
	uid, gid          uint32
	groups            []uint32
}

// lookupUser finds the user to run as, by the machine's own getent: only it
// knows the image's databases.
func (in *inner) lookupUser() (err error) {
	p := in.plan
	in.user = passwd{name: "root", home: "/root", groups: p.ExtraGroups}
	if p.UIDSet != nil {
		in.user = passwd{uid: p.UIDSet.UID, gid: p.UIDSet.GID, groups: p.ExtraGroups, home: "/"}
		if p.UIDSet.UID == 0 && !p.NoHome {
			in.user.name, in.user.home = "root", "/root"
		}
		return nil
	}
	name, group, grouped := strings.Cut(p.User, ":")
	if grouped {
		// USER:GROUP is for images that say so (OCI image specification, config.md).
		defer func() {
			if err == nil {
				err = in.primaryGroup(group)
			}
		}()
	}
	if name == "" || name == "root" || name == "0" {
		if p.User == "" && len(p.Argv) == 0 && !p.Boot {
			// A login shell: root's, when the image says which.
			if line, err := in.getent("passwd", "root"); err == nil {
				if u, err := parsePasswd(line); err == nil {
					in.user.shell = u.shell
				}
			}
		}
		return nil
	}
	line, err := in.getent("passwd", name)
	if err != nil {
		uid, noNumber := strconv.ParseUint(name, 10, 32)
		if noNumber != nil {
			return fmt.Errorf("Failed to resolve user %s: %w", name, err)
		}
		// A number needs no entry. Its group is root's, as for OCI runtimes.
		in.user = passwd{uid: uint32(uid), groups: p.ExtraGroups, home: "/"}
		return nil
	}
	u, err := parsePasswd(line)
	if err != nil {
		return fmt.Errorf("look up user %q: %w", name, err)
	}
	list, err := in.getent("initgroups", u.name)
	if err == nil {
		u.groups = parseInitgroups(list)
	}
	in.user = u
	if u.home != "/" && !strings.HasPrefix(path.Clean(u.home)+"/", "/proc/") {
		// As stock does: a user without a home gets one.
		if fd, err := in.root.open(path.Dir(u.home), unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
			if unix.Mkdirat(fd, path.Base(u.home), 0o755) == nil {
				_ = unix.Fchownat(fd, path.Base(u.home), int(u.uid), int(u.gid), unix.AT_SYMLINK_NOFOLLOW)
			}
			_ = unix.Close(fd)
		}
	}
	return nil
}

// primaryGroup sets the group to run as, a name or a number of the machine's. The
// user's other groups do not count then.
func (in *inner) primaryGroup(group string) error {
	id, err := strconv.ParseUint(group, 10, 32)
	if err != nil {
		line, lookErr := in.getent("group", group)
		fields := strings.Split(line, ":")
		if lookErr == nil && len(fields) >= 3 {
			id, err = strconv.ParseUint(fields[2], 10, 32)
		}
		if err != nil {
			return fmt.Errorf("Failed to resolve group %s: %w", group, errors.Join(lookErr))
		}
	}
	in.user.gid, in.user.groups = uint32(id), in.plan.ExtraGroups
	return nil
}

func parsePasswd(line string) (passwd, error) {
	f := strings.Split(line, ":")
	if len(f) < 7 {
		return passwd{}, fmt.Errorf("parse passwd line %q: fewer than 7 fields", line)
	}
	uid, err1 := strconv.ParseUint(f[2], 10, 32)
	gid, err2 := strconv.ParseUint(f[3], 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return passwd{}, fmt.Errorf("parse passwd line %q: %w", line, err)
	}
	u := passwd{name: f[0], uid: uint32(uid), gid: uint32(gid), home: f[5], shell: f[6]}
	if !strings.HasPrefix(u.home, "/") {
		u.home = "/"
	}
	return u, nil
}

func (in *inner) environ() []string {
	p, u := in.plan, in.user
	env := []string{
		"PATH=" + DefaultPath,
		"container=" + p.Manager,
	}
	env = append(env, p.Term...)
	if u.name != "" && !hasKey(p.Env, "USER") {
		env = append(env, "HOME="+u.home, "USER="+u.name, "LOGNAME="+u.name)
	} else if u.name == "" && !p.NoHome {
		env = append(env, "HOME="+u.home)
	}
	env = append(env, "container_uuid="+p.UUID)
	if p.ListenFDs > 0 {
		env = append(env, "LISTEN_FDS="+strconv.Itoa(p.ListenFDs), "LISTEN_PID=1")
	}
	env = append(env, "NOTIFY_SOCKET=/run/host/notify")
	if len(p.Credentials) > 0 {
		env = append(env, "CREDENTIALS_DIRECTORY=/run/host/credentials")
	}
	if !p.Boot {
		env = append(env, "LANG=C.UTF-8")
	}
	return mergeEnv(env, p.Env)
}

func hasKey(env []string, key string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, key+"=") {
			return true
		}
	}
	return false
}

// mergeEnv lets later settings win.
func mergeEnv(lists ...[]string) []string {
	var out []string
	at := map[string]int{}
	for _, list := range lists {
		for _, e := range list {
			key, _, _ := strings.Cut(e, "=")
			if i, ok := at[key]; ok {
				out[i] = e
				continue
			}
			at[key] = len(out)
			out = append(out, e)
		}
	}
	return out
}

// candidates are the programs to try, in order.
func (in *inner) candidates(env []string) ([]string, []string) {
	p := in.plan
	switch {
	case p.Boot:
		programs := []string{"/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/sbin/init"}
		return programs, p.Argv
	case len(p.Argv) == 0 && !p.NoLogin:
		shell := in.user.shell
		var programs []string
		if shell != "" {
			programs = append(programs, shell)
		}
		return append(programs, "/bin/bash", "/bin/sh"), nil
	case len(p.Argv) == 0:
		return nil, nil
	case strings.Contains(p.Argv[0], "/"):
		return []string{p.Argv[0]}, p.Argv[1:]
	}
	search := DefaultPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = v
		}
	}
	var programs []string
	for _, dir := range strings.Split(search, ":") {
		if strings.HasPrefix(dir, "/") {
			programs = append(programs, path.Join(dir, p.Argv[0]))
		}
	}
	return programs, p.Argv[1:]
}

// argv0 is what the program is called.
func (in *inner) argv0(program string) string {
	switch {
	case in.plan.Boot:
		return program
	case len(in.plan.Argv) == 0:
		return "-" + path.Base(program)
	}
	return in.plan.Argv[0]
}

func (in *inner) execute() error {
	env := in.environ()
	programs, args := in.candidates(env)
	chdir := in.plan.Chdir
	if chdir == "" && len(in.plan.Argv) == 0 && !in.plan.Boot && in.user.home != "" {
		chdir = in.user.home
	}
	if err := in.nextPID(); err != nil {
		return err
	}
	if err := in.restrict(); err != nil {
		return err
	}
	if in.plan.Umask != nil {
		unix.Umask(int(*in.plan.Umask))
	}
	if chdir != "" {
		if err := unix.Chdir(chdir); err != nil && in.plan.Chdir != "" {
			return fmt.Errorf("Failed to change to specified working directory %s: %w", chdir, err)
		}
	}
	if err := in.closeStray(); err != nil {
		return err
	}
	if in.plan.PID2 {
		return in.executeStub(programs, args, env)
	}
	if err := in.ch.Send(StepReady, nil); err != nil {
		return err
	}
	if err := in.ch.Wait(StepExecute); err != nil {
		return err
	}
	if err := setLimits(in.plan.Rlimits); err != nil {
		return err
	}
	// The supervisor sees the end of the channel when the execution works.
	return tryExec(programs, in.argv0, args, env, in.name())
}

// closeStray lets nothing but the streams and the sockets handed over survive the
// execution: what the spawner's caller left open is not for the machine.
func (in *inner) closeStray() error {
	err := unix.CloseRange(uint(3+in.plan.ListenFDs), ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("close stray descriptors: %w", err)
	}
	return nil
}

func (in *inner) name() string {
	if len(in.plan.Argv) > 0 && !in.plan.Boot {
		return in.plan.Argv[0]
	}
	if in.plan.Boot {
		return "init"
	}
	return "shell"
}

func tryExec(programs []string, argv0 func(string) string, args, env []string, name string) error {
	defaultSignals()
	var last error = unix.ENOENT
	for _, p := range programs {
		err := unix.Exec(p, append([]string{argv0(p)}, args...), env)
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			last = err
		}
		if errors.Is(err, unix.E2BIG) {
			break
		}
	}
	return fmt.Errorf("execv(%s) failed: %w", name, last)
}

// defaultSignals lets no signal be ignored any more that the spawner's caller has
// ignored, as nohup(1) does. Handlers end with the execution by themselves.
func defaultSignals() {
	action := [64]byte{} // SIG_DFL, no flags, empty mask, on every architecture
	for sig := uintptr(1); sig <= 64; sig++ {
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&action)), 0, SigsetSize, 0, 0)
	}
}

// executeStub starts the payload as process 2, held back, and replaces this
// program by itself as the machine's init, so that no thread of it keeps more
// rights than the payload has when that begins.
func (in *inner) executeStub(programs, args, env []string) error {
	spec := launchSpec{Programs: programs, Args: args, Env: env, Name: in.name(), Limits: in.plan.Rlimits}
	for _, p := range programs {
		spec.Argv0 = append(spec.Argv0, in.argv0(p))
	}
	if err := in.ch.Send(StepReady, nil); err != nil {
		return err
	}
	if err := in.ch.Wait(StepExecute); err != nil {
		return err
	}
	pid, release, err := in.launch(spec)
	if err != nil {
		return fmt.Errorf("start process 2: %w", err)
	}
	stubEnv := []string{"container=" + in.plan.Manager, "container_uuid=" + in.plan.UUID}
	if err := in.handOver(pid, release); err != nil {
		return fmt.Errorf("execute stub init: %w", err)
	}
	err = execFD(in.exe, []string{StubName}, stubEnv)
	runtime.KeepAlive(in)
	return fmt.Errorf("execute stub init: %w", err)
}

// execFD executes the open file fd (execveat(2), AT_EMPTY_PATH).
func execFD(fd int, argv, env []string) error {
	args, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return err
	}
	envs, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return err
	}
	empty := [1]byte{}
	_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(&empty[0])),
		uintptr(unsafe.Pointer(&args[0])), uintptr(unsafe.Pointer(&envs[0])), unix.AT_EMPTY_PATH, 0)
	return errno
}
