package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"machined/dbus"
	"machined/internal/sys"
)

// connectHost reaches the bus of another host through ssh(1) and
// systemd-stdio-bridge(1): a stream without descriptor passing.
func connectHost(ctx context.Context, host string) (*godbus.Conn, error) {
	host, container, _ := strings.Cut(host, "/")
	name, port := host, ""
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		if _, err := strconv.ParseUint(host[i+1:], 10, 16); err == nil {
			name, port = host[:i], host[i+1:]
		}
	}
	if name == "" || strings.HasPrefix(name, "-") {
		return nil, fmt.Errorf("host %q is not valid: want [USER@]HOST[:PORT][/CONTAINER]", host)
	}
	args := []string{"-xT"}
	if port != "" {
		args = append(args, "-p", port)
	}
	args = append(args, "--", strings.Trim(name, "[]"), "systemd-stdio-bridge")
	if container != "" {
		args = append(args, "--machine="+shellQuote(container))
	}
	ssh := "ssh"
	if own := os.Getenv("SYSTEMD_SSH"); own != "" {
		ssh = own
	}
	return connectCommand(ctx, ssh, args...)
}

// connectCommand speaks to the bus through the standard input and output of a
// program, which ends when the connection is closed.
func connectCommand(ctx context.Context, program string, args ...string) (*godbus.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), program)
	ours := os.NewFile(uintptr(fds[0]), "bus")
	defer ours.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	err = cmd.Start()
	// Kept open, it would hide the program's end from the reader of the other one.
	_ = theirs.Close()
	if err != nil {
		return nil, err
	}
	go func() { _ = cmd.Wait() }()
	sock, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	conn, err := dbus.FromSocket(ctx, sock.(*net.UnixConn))
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		// What was wrong the program has said.
		return nil, unix.ENOTCONN
	}
	return conn, err
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// stateDir is where machined describes machines (sd-login(3) reads it too).
const stateDir = "/run/systemd/machines"

// connectMachine reaches the bus of [USER@]CONTAINER: with a user, or where the
// bus of a session is asked for, over a session made for that, else directly.
func connectMachine(ctx context.Context, arg string, session bool) (*godbus.Conn, error) {
	user, machine := splitMachine(arg)
	if machine != "" && !machineName(machine) || machine == "" && user == "" {
		return nil, unix.EINVAL
	}
	if session || strings.Contains(arg, "@") {
		return connectUser(ctx, user, machine, session)
	}
	return connectContainer(ctx, machine)
}

// machineName says whether name can be a file's in stateDir. Only then it is
// looked for.
func machineName(name string) bool {
	return name == filepath.Base(name) && name[0] != '.' && name[0] != '-' && !strings.ContainsAny(name, "@:\x00")
}

// connectContainer reaches the system bus of a container of this host, as
// sd-bus does with x-machine-unix: the state file names the leader, and the
// socket is found under the leader's root. The connection is made with the
// identity of the container's root, since its bus sees nothing else as root.
func connectContainer(ctx context.Context, name string) (*godbus.Conn, error) {
	leader, class, err := readLeader(name)
	if err != nil {
		return nil, err
	}
	if class != "container" {
		return nil, unix.EMEDIUMTYPE
	}
	root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", leader), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(int(root.Fd()), "run/dbus/system_bus_socket", &how)
	if err != nil {
		return nil, os.NewSyscallError("openat2", err)
	}
	defer unix.Close(fd)
	shift, err := rootUID(leader)
	if err != nil {
		return nil, err
	}
	sock, err := dialAs(fd, shift)
	if err != nil {
		return nil, err
	}
	return dbus.FromSocket(ctx, sock)
}

// connectUser reaches the system bus of a container, or of this host, with the
// rights of one of its users, or the bus of that user's own session: through a
// session made for that by systemd-run(1).
func connectUser(ctx context.Context, user, machine string, session bool) (*godbus.Conn, error) {
	if user == "" {
		user = "root"
	}
	if machine == "" {
		machine = ".host"
	}
	args := []string{
		"--machine=" + machine, "--pipe", "--collect", "--quiet", "--wait",
		"--property=User=" + user, "--property=PAMName=login", "systemd-stdio-bridge",
	}
	if session {
		// The service manager there knows the variable, whose value PAM decides.
		args = append(args, "-punix:path=${XDG_RUNTIME_DIR}/bus")
	}
	return connectCommand(ctx, "systemd-run", args...)
}

func readLeader(name string) (int, string, error) {
	data, err := os.ReadFile(filepath.Join(stateDir, name))
	if errors.Is(err, os.ErrNotExist) {
		return 0, "", unix.EHOSTDOWN
	}
	if err != nil {
		return 0, "", err
	}
	leader, class := 0, ""
	scanner := bufio.NewScanner(bytes.NewReader(data))
	for scanner.Scan() {
		key, value, _ := strings.Cut(scanner.Text(), "=")
		value = strings.Trim(value, `"`)
		switch key {
		case "LEADER":
			leader, err = strconv.Atoi(value)
			if err != nil || leader <= 1 {
				return 0, "", unix.EIO
			}
		case "CLASS":
			class = value
		}
	}
	if leader == 0 {
		return 0, "", unix.EHOSTDOWN
	}
	return leader, class, scanner.Err()
}

// rootUID is the UID outside that UID 0 of a process's user namespace maps to.
func rootUID(pid int) (uint32, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[0] == "0" {
			outside, err := strconv.ParseUint(fields[1], 10, 32)
			return uint32(outside), err
		}
	}
	return 0, fmt.Errorf("user namespace of process %d has no root", pid)
}

// dialAs connects to the socket behind an O_PATH descriptor on a thread whose
// effective UID is uid. The kernel records that UID as the peer's.
func dialAs(fd int, uid uint32) (*net.UnixConn, error) {
	var sock *net.UnixConn
	err := sys.OnThread(func() (err error) {
		sock, err = dialPath(fd, uid)
		return err
	})
	return sock, err
}

func dialPath(fd int, uid uint32) (*net.UnixConn, error) {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(s), "bus")
	defer file.Close()
	address := &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d", fd)}
	if uid != 0 {
		// A raw call changes this thread alone. Only the effective UID moves, so
		// the permission to connect is kept by going back if it was refused.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			return nil, os.NewSyscallError("setresuid", errno)
		}
		address.Name = fmt.Sprintf("/proc/thread-self/fd/%d", fd)
	}
	if err := unix.Connect(s, address); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}
