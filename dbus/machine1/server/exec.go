package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"machined/dbus"
	"machined/internal/execreq"
	"machined/internal/sys"
	"machined/registry"
)

// execPatience bounds the supervisor's answer.
const execPatience = 10 * time.Second

// parseExec checks the command and options of an Exec.
func parseExec(command []string, options map[string]godbus.Variant) (*execreq.Request, error) {
	r := &execreq.Request{Args: command, User: "root"}
	if len(command) == 0 || command[0] == "" {
		return nil, invalid("No program to run")
	}
	if len(command) > maxArguments {
		return nil, dbus.Errorf(dbus.ErrorLimitsExceeded, "Too many arguments: %d, at most %d", len(command), maxArguments)
	}
	for key, value := range options {
		var err error
		switch key {
		case "User":
			err = value.Store(&r.User)
		case "Environment":
			err = value.Store(&r.Env)
		case "WorkingDirectory":
			err = value.Store(&r.Dir)
		default:
			return nil, invalid("Unknown option '%.64s'", key)
		}
		if err != nil {
			return nil, invalid("Option '%s' has type '%s'", key, value.Signature())
		}
	}
	if !validUser(r.User) {
		return nil, invalid("Invalid user name '%.64s'", r.User)
	}
	if r.Dir != "" && (!path.IsAbs(r.Dir) || strings.ContainsRune(r.Dir, 0)) {
		return nil, invalid("Working directory '%.255s' is not absolute", r.Dir)
	}
	if len(r.Env) > maxEnvironment {
		return nil, dbus.Errorf(dbus.ErrorLimitsExceeded, "Too many environment assignments: %d, at most %d", len(r.Env), maxEnvironment)
	}
	for _, assignment := range r.Env {
		if !validAssignment(assignment) {
			return nil, invalid("Invalid environment assignments")
		}
	}
	return r, nil
}

// mayExec checks a request and asks whether the caller may have it done.
func (s *Server) mayExec(ctx context.Context, c *dbus.Call, m *registry.Machine) (*execreq.Request, error) {
	command, _ := c.Args[0].([]string)
	options, _ := c.Args[1].(map[string]godbus.Variant)
	r, err := parseExec(command, options)
	if err != nil {
		return nil, err
	}
	if m.Class != registry.ClassContainer {
		return nil, notSupported("Running programs is only supported in container machines.")
	}
	if m.UID != 0 {
		if err := s.refuseHostUserNamespace(m); err != nil {
			return nil, err
		}
	}
	d := details{"machine", m.Name, "user", r.User, "program", r.Args[0], "command_line", strings.Join(r.Args, " ")}
	if err := s.authorizeOwner(ctx, c, m, hostAction(m, "shell"), d); err != nil {
		return nil, err
	}
	return r, nil
}

// exec runs a program on the caller's own streams.
func (s *Server) exec(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
	r, err := s.mayExec(ctx, c, &m)
	if err != nil {
		return nil, err
	}
	var streams [3]*os.File
	defer func() {
		for _, f := range streams {
			_ = f.Close()
		}
	}()
	for i := range streams {
		if streams[i], err = c.File(2 + i); err != nil {
			return nil, err
		}
	}
	control, err := s.startExec(ctx, &m, r, streams)
	if err != nil {
		return nil, err
	}
	return []any{control}, nil
}

// execTerminal runs a program on a new terminal of the machine.
func (s *Server) execTerminal(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
	r, err := s.mayExec(ctx, c, &m)
	if err != nil {
		return nil, err
	}
	r.Terminal = true
	creds, err := c.Credentials(ctx)
	if err != nil {
		return nil, err
	}
	pty, err := s.newPTY(ctx, creds.UID, &m)
	if err != nil {
		return nil, err
	}
	peer, err := pty.Peer()
	if err != nil {
		pty.Close()
		return nil, err
	}
	defer peer.Close()
	control, err := s.startExec(ctx, &m, r, [3]*os.File{peer, peer, peer})
	if err != nil {
		pty.Close()
		return nil, err
	}
	return []any{control, pty.Master, pty.Path}, nil
}

// startExec hands a request to the machine's supervisor, which knows what its
// programs may do, and is in no sandbox. It returns the caller's end of the
// socket that connects caller and program from then on, without us.
func (s *Server) startExec(ctx context.Context, m *registry.Machine, r *execreq.Request, streams [3]*os.File) (*os.File, error) {
	// The supervisor of that name is this machine's.
	if err := s.withLeader(m, func(*sys.Process) error { return nil }); err != nil {
		return nil, err
	}
	spec, err := execreq.Memfd(r)
	if err != nil {
		return nil, err
	}
	defer spec.Close()
	ctx, cancel := context.WithTimeout(ctx, execPatience)
	defer cancel()
	var d net.Dialer
	dialed, err := d.DialContext(ctx, "unixpacket", execreq.Socket(m.Name))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, notSupported("The supervisor of machine '%s' runs no programs: only machine-spawn of this version does. OpenMachineShell needs a service manager in the machine instead", m.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("reach supervisor of machine %q: %w", m.Name, err)
	}
	conn := dialed.(*net.UnixConn)
	defer conn.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	rights := unix.UnixRights(int(spec.Fd()), int(streams[0].Fd()), int(streams[1].Fd()), int(streams[2].Fd()), int(theirs.Fd()))
	answer := make([]byte, 1024)
	n := 0
	if _, _, err = conn.WriteMsgUnix([]byte{1}, rights, nil); err == nil {
		n, err = conn.Read(answer)
	}
	switch {
	case err == nil && string(answer[:n]) != execreq.Taken:
		err = errors.New(string(answer[:n]))
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = unix.ETIMEDOUT
	}
	if err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("run program in machine %q: %w", m.Name, err)
	}
	return ours, nil
}
