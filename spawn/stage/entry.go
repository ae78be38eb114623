package stage

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/caps"
	"machined/internal/execreq"
)

// EntryName is how this program is called when it runs a further program in a
// machine that runs already.
const EntryName = "(sd-entry)"

// Descriptors that it starts with, after the program's own streams.
const (
	entrySpec    = 3
	entryControl = 4
	entryLeader  = 5 // pidfd
)

// hangupGrace is how long a program may go on that nobody waits for any more.
const hangupGrace = 5 * time.Second

// Entry is what such a program may do, as the machine's payload may, and what was
// asked for.
type Entry struct {
	execreq.Request
	Leader      int      // PID, of whom the descriptor is
	Cgroup      string   // directory of the leader's cgroup; "": none
	Userns      bool     // the machine has a user namespace of its own
	BaseEnv     []string // of every program of the machine
	NoNewPrivs  bool
	CapBounding uint64
	CapAmbient  uint64
	Seccomp     [][]byte
	Rlimits     []Rlimit
	Personality *uint64
}

// StartEntry starts the process that does it. files are the request's streams and
// the control socket, leader is the machine's pidfd. The caller waits for it.
func StartEntry(e Entry, files [4]*os.File, leader int) (*os.Process, error) {
	spec, err := execreq.Memfd(e)
	if err != nil {
		return nil, err
	}
	defer spec.Close()
	exe, err := readOnlySelf()
	if err != nil {
		return nil, err
	}
	defer unix.Close(exe)
	dup, err := unix.FcntlInt(uintptr(leader), unix.F_DUPFD_CLOEXEC, 64)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	pidfd := os.NewFile(uintptr(dup), "leader")
	defer pidfd.Close()
	return os.StartProcess(procFD(exe), []string{EntryName}, &os.ProcAttr{
		Dir: "/", Env: []string{"GOMAXPROCS=2", "GOGC=off"},
		Files: []*os.File{files[0], files[1], files[2], spec, files[3], pidfd},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

// readOnlySelf is this program on a mount of its own that nobody can write
// through: the machine's root may come to see /proc/PID/exe of a process that has
// joined it but has not executed anything yet.
func readOnlySelf() (int, error) {
	m, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self/exe", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open this program: %w", os.NewSyscallError("open_tree", err))
	}
	defer unix.Close(m)
	if err := setAttr(m, false, unix.MountAttr{Attr_set: readonly}); err != nil {
		return -1, fmt.Errorf("open this program: %w", err)
	}
	// Beyond the numbers that the child's descriptors are moved to.
	fd, err := unix.FcntlInt(uintptr(m), unix.F_DUPFD_CLOEXEC, 64)
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	return fd, nil
}

// entry is the work of that process.
type entry struct {
	Entry
	root tree
	user passwd
	have uint64 // capabilities that there are to give
}

func entryMain() int {
	for fd := entrySpec; fd <= entryLeader; fd++ {
		unix.CloseOnExec(fd)
	}
	control := os.NewFile(entryControl, "control")
	spec := os.NewFile(entrySpec, "request")
	var e entry
	err := execreq.Read(spec, &e.Entry)
	_ = spec.Close()
	pid := 0
	if err == nil {
		pid, err = e.start()
	}
	// The streams are the program's alone: their other ends see when it closes them.
	if null, nullErr := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0); nullErr == nil {
		for fd := range 3 {
			_ = unix.Dup3(null, fd, 0)
		}
	}
	if err != nil {
		fmt.Fprintf(control, "error %d %s\n", entryStatus(err), strings.ReplaceAll(err.Error(), "\n", " "))
		return 1
	}
	go follow(control, pid)
	var ws syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(pid, &ws, 0, nil); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if ws.Signaled() {
		fmt.Fprintf(control, "signal %d\n", ws.Signal())
	} else {
		fmt.Fprintf(control, "exit %d\n", ws.ExitStatus())
	}
	return 0
}

// entryStatus is the exit status for a program that could not be run, as shells
// have it.
func entryStatus(err error) int {
	switch {
	case errors.Is(err, errRawExec) && errors.Is(err, unix.ENOENT), errors.Is(err, errRawExec) && errors.Is(err, unix.ENOTDIR):
		return 127
	case errors.Is(err, errRawExec):
		return 126
	}
	return 125
}

// follow does what the caller says about its program, until it goes away.
func follow(control *os.File, pid int) {
	lines := bufio.NewScanner(control)
	for lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		n, err := strconv.Atoi(rest)
		if word == "kill" && err == nil && n > 0 && n <= 64 {
			_ = unix.Kill(pid, unix.Signal(n))
		}
	}
	// As when a terminal is closed. It leads a session, and so a process group.
	_ = unix.Kill(-pid, unix.SIGHUP)
	_ = unix.Kill(-pid, unix.SIGCONT)
	time.Sleep(hangupGrace)
	_ = unix.Kill(-pid, unix.SIGKILL)
}

func (e *entry) start() (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	root, err := openTree("/proc/" + strconv.Itoa(e.Leader) + "/root")
	// What was opened is the leader's, if that has lived until now.
	if unix.PidfdSendSignal(entryLeader, 0, nil, 0) != nil {
		return 0, errors.New("the machine has ended")
	}
	if err != nil {
		return 0, err
	}
	e.root = root
	if _, _, e.have, err = caps.Get(); err != nil {
		return 0, err
	}
	if e.Userns {
		e.have = caps.All()
	}
	if err := e.lookup(); err != nil {
		return 0, err
	}
	if err := e.inherited(); err != nil {
		return 0, err
	}
	env := e.environ()
	programs := search(e.Request.Args[0], env)
	if len(programs) == 0 {
		return 0, fmt.Errorf("%w %s: %w", errRawExec, e.Request.Args[0], unix.ENOENT)
	}
	l, err := e.list(e.user, programs, e.Request.Args, env)
	if err != nil {
		return 0, err
	}
	return l.start()
}

// lookup finds the user to run as in the machine's own files, and where they don't
// know, by the machine's getent.
func (e *entry) lookup() error {
	name := e.Request.User
	if name == "" {
		name = "root"
	}
	line, err := accountLine(e.root, "passwd", name)
	if err != nil && name != "root" && name != "0" {
		line, err = e.getent("passwd", name)
	}
	switch u, parseErr := parsePasswd(line); {
	case err == nil && parseErr == nil:
		e.user = u
	case name == "root" || name == "0":
		e.user = passwd{name: "root", home: "/root"}
		return nil
	default:
		id, numErr := strconv.ParseUint(name, 10, 32)
		if numErr != nil || id == 0xffffffff {
			return fmt.Errorf("user %q is not known in the machine", name)
		}
		e.user = passwd{uid: uint32(id), gid: uint32(id), home: "/"}
		return nil
	}
	var listed bool
	if e.user.groups, listed = groupsOf(e.root, e.user); !listed {
		if list, err := e.getent("initgroups", e.user.name); err == nil {
			e.user.groups = parseInitgroups(list)
		}
	}
	return nil
}

// inherited sets what a program takes over from the process that starts it: some
// of it can only be changed from outside, and this process is here for nothing
// else.
func (e *entry) inherited() error {
	_ = os.WriteFile("/proc/thread-self/loginuid", []byte("4294967295"), 0)
	if score, err := os.ReadFile("/proc/" + strconv.Itoa(e.Leader) + "/oom_score_adj"); err == nil {
		_ = os.WriteFile("/proc/self/oom_score_adj", bytes.TrimSpace(score), 0)
	}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(e.Leader, &set); err == nil {
		_ = unix.SchedSetaffinity(0, &set)
	}
	unix.Umask(0o022)
	in := inner{plan: &Plan{Rlimits: e.Rlimits}}
	return in.raiseLimits()
}

func (e *entry) environ() []string {
	u := e.user
	env := []string{"PATH=" + DefaultPath}
	if u.name != "" {
		env = append(env, "USER="+u.name, "LOGNAME="+u.name)
	}
	env = append(env, "HOME="+u.home)
	if u.shell != "" {
		env = append(env, "SHELL="+u.shell)
	}
	return mergeEnv(env, e.BaseEnv, e.Request.Env)
}

// search are the paths that a program's name can mean.
func search(name string, env []string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	dirs := DefaultPath
	for _, v := range env {
		if p, ok := strings.CutPrefix(v, "PATH="); ok {
			dirs = p
		}
	}
	var out []string
	for dir := range strings.SplitSeq(dirs, ":") {
		if strings.HasPrefix(dir, "/") {
			out = append(out, path.Join(dir, name))
		}
	}
	return out
}

// namespaces are those of the leader that are not ours.
func (e *entry) namespaces() (uintptr, error) {
	var flags uintptr
	for _, ns := range []struct {
		name string
		flag uintptr
	}{
		{"user", unix.CLONE_NEWUSER}, {"mnt", unix.CLONE_NEWNS}, {"pid", unix.CLONE_NEWPID}, {"ipc", unix.CLONE_NEWIPC},
		{"uts", unix.CLONE_NEWUTS}, {"net", unix.CLONE_NEWNET}, {"cgroup", unix.CLONE_NEWCGROUP}, {"time", unix.CLONE_NEWTIME},
	} {
		var ours, theirs unix.Stat_t
		if err := unix.Stat("/proc/self/ns/"+ns.name, &ours); errors.Is(err, unix.ENOENT) {
			continue // not in this kernel
		} else if err != nil {
			return 0, err
		}
		if err := unix.Stat("/proc/"+strconv.Itoa(e.Leader)+"/ns/"+ns.name, &theirs); err != nil {
			return 0, fmt.Errorf("look at namespaces of the machine: %w", err)
		}
		if ours.Dev != theirs.Dev || ours.Ino != theirs.Ino {
			flags |= ns.flag
		}
	}
	if flags&unix.CLONE_NEWNS == 0 {
		return 0, errors.New("the machine's first process is in the host's file system")
	}
	return flags, nil
}

// getent runs the machine's getent(1) as nobody, without rights, and returns its
// line: only it knows all of the machine's users.
func (e *entry) getent(database, key string) (string, error) {
	if strings.HasPrefix(key, "-") {
		return "", fmt.Errorf("name %q starts with a dash", key)
	}
	limited := *e
	limited.CapBounding, limited.CapAmbient, limited.NoNewPrivs = 0, 0, true
	limited.Request = execreq.Request{Args: []string{"getent", database, key}, Dir: "/"}
	env := []string{"PATH=" + DefaultPath}
	l, err := limited.list(passwd{uid: 65534, gid: 65534}, search("getent", env), limited.Request.Args, env)
	if err != nil {
		return "", err
	}
	out, in, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer out.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		_ = in.Close()
		return "", err
	}
	defer null.Close()
	for fd, from := range []*os.File{null, in, null} {
		l.calls = append([]rawCall{{nr: unix.SYS_DUP3, args: [6]uintptr{from.Fd(), uintptr(fd), 0}, what: "set up streams"}}, l.calls...)
	}
	pid, err := l.start()
	_ = in.Close()
	if err != nil {
		return "", err
	}
	_ = out.SetReadDeadline(time.Now().Add(entryLookup))
	data, readErr := io.ReadAll(io.LimitReader(out, getentOutput))
	_ = unix.Kill(-pid, unix.SIGKILL)
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &ws, 0, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	line, _, _ := strings.Cut(string(data), "\n")
	if readErr != nil || line == "" {
		return "", errors.Join(exec.ErrNotFound, readErr)
	}
	return line, nil
}

// entryLookup bounds one answer of the machine's getent.
const entryLookup = 10 * time.Second
