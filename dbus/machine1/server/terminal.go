package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/internal/nsexec"
	"machined/internal/sys"
	"machined/registry"
)

// machineBusTimeout bounds a call to the service manager inside a machine,
// which may be anything that listens there.
const machineBusTimeout = 30 * time.Second

const (
	systemdName    = "org.freedesktop.systemd1"
	systemdPath    = godbus.ObjectPath("/org/freedesktop/systemd1")
	systemdManager = systemdName + ".Manager"
)

// newPTY makes a terminal of the machine, or of the host, for the user uid.
func (s *Server) newPTY(ctx context.Context, uid uint32, m *registry.Machine) (*nsexec.PTY, error) {
	return s.ptys.Open(ctx, uid, func(ctx context.Context) (*nsexec.PTY, error) { return s.openTerminal(ctx, m) })
}

func (s *Server) openTerminal(ctx context.Context, m *registry.Machine) (*nsexec.PTY, error) {
	switch m.Class {
	case registry.ClassHost:
		return nsexec.OpenHostPTY()
	case registry.ClassContainer:
	default:
		return nil, notSupported("Opening a terminal is only supported on container machines.")
	}
	var pty *nsexec.PTY
	err := s.withLeader(m, func(p *sys.Process) (err error) {
		pty, err = nsexec.OpenPTY(ctx, p)
		return err
	})
	return pty, err
}

func (s *Server) openPTY(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
	if err := s.authorizeOwner(ctx, c, &m, hostAction(&m, "open-pty"), details{"machine", m.Name}); err != nil {
		return nil, err
	}
	creds, err := c.Credentials(ctx)
	if err != nil {
		return nil, err
	}
	return passed(s.newPTY(ctx, creds.UID, &m))
}

// manager calls a method of the machine's service manager, or of the host's.
func (s *Server) manager(ctx context.Context, m *registry.Machine, member string, args ...any) error {
	conn := s.conn
	if m.Class != registry.ClassHost {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, machineBusTimeout)
		defer cancel()
		err := s.withLeader(m, func(p *sys.Process) error {
			sock, err := nsexec.DialUnix(ctx, p, nsexec.BusSocket)
			if err != nil {
				return err
			}
			conn, err = dbus.FromSocket(ctx, sock)
			return err
		})
		if err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
				err = fmt.Errorf("no systemd runs inside: %w", err)
			}
			if errors.Is(err, unix.ENOENT) {
				return dbus.Errorf(dbus.ErrorFileNotFound, "There is no system bus in container %s: %w", m.Name, err)
			}
			return fmt.Errorf("connect to bus of machine %q: %w", m.Name, err)
		}
		defer conn.Close()
	}
	err := conn.Object(systemdName, systemdPath).CallWithContext(ctx, systemdManager+"."+member, 0, args...).Err
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("call %s in machine %q: %w", member, m.Name, unix.ETIMEDOUT)
	}
	return err
}

func (s *Server) openLogin(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
	d := details{"machine", m.Name, "verb", "login"}
	if err := s.authorizeOwner(ctx, c, &m, hostAction(&m, "login"), d); err != nil {
		return nil, err
	}
	creds, err := c.Credentials(ctx)
	if err != nil {
		return nil, err
	}
	return passed(s.login(ctx, creds.UID, &m))
}

// passed is the reply that hands a terminal out.
func passed(pty *nsexec.PTY, err error) ([]any, error) {
	if err != nil {
		return nil, err
	}
	return []any{pty.Master, pty.Path}, nil
}

// login opens a terminal with a login prompt for a caller that may have one.
func (s *Server) login(ctx context.Context, uid uint32, m *registry.Machine) (*nsexec.PTY, error) {
	pty, err := s.newPTY(ctx, uid, m)
	if err != nil {
		return nil, err
	}
	unit := fmt.Sprintf("container-getty@%d.service", pty.Number)
	// A getty that was left often in a short time has run into its start limit,
	// and the terminal would stay dark.
	_ = s.manager(ctx, m, "ResetFailedUnit", unit)
	if err := s.manager(ctx, m, "StartUnit", unit, "replace"); err != nil {
		pty.Close()
		return nil, err
	}
	return pty, nil
}

// shellRequest is a checked OpenMachineShell.
type shellRequest struct {
	user, path  string
	args        []string
	environment []string
	script      bool // args hold our own script, not the caller's words
}

// loginScript starts the shell that the user database of the machine names for
// user $1, as a login shell.
const loginScript = `shell=$(getent passwd "$1" 2>/dev/null | { IFS=: read -r _ _ _ _ _ _ x; printf %s "$x"; }); ` +
	`if [ -n "$shell" ] && [ -x "$shell" ]; then exec "$shell" -l; else exec /bin/sh -l; fi`

// Bounds of what a caller may have started.
const (
	maxEnvironment = 1024
	maxArguments   = 4096
)

func parseShell(user, path string, args, environment []string) (*shellRequest, error) {
	r := &shellRequest{user: user, path: path, args: args, environment: environment}
	if r.user == "" {
		r.user = "root"
	}
	if !validUser(r.user) {
		return nil, invalid("Invalid user name '%.64s'", r.user)
	}
	if len(r.args) > maxArguments {
		return nil, dbus.Errorf(dbus.ErrorLimitsExceeded, "Too many arguments: %d, at most %d", len(r.args), maxArguments)
	}
	if len(r.environment) > maxEnvironment {
		return nil, dbus.Errorf(dbus.ErrorLimitsExceeded, "Too many environment assignments: %d, at most %d", len(r.environment), maxEnvironment)
	}
	for _, assignment := range r.environment {
		if !validAssignment(assignment) {
			return nil, invalid("Invalid environment assignments")
		}
	}
	switch {
	case r.path == "": // arguments without a program say nothing
		r.path, r.script = "/bin/sh", true
		r.args = []string{"sh", "-c", loginScript, "sh", r.user}
	case !strings.HasPrefix(r.path, "/"):
		return nil, invalid("Specified path '%.255s' is not absolute", r.path)
	case len(r.args) == 0:
		r.args = []string{r.path}
	}
	return r, nil
}

// validUser accepts user names and numbers that can be a unit's User=. What
// the name means is the machine's affair.
func validUser(name string) bool {
	if name == "" || len(name) > 256 || name[0] == '-' || name == "." || name == ".." {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r == 0x7f || strings.ContainsRune(":/%$\"'\\", r)
	})
}

// validAssignment accepts NAME=VALUE with a portable name (environ(7)).
func validAssignment(s string) bool {
	name, value, ok := strings.Cut(s, "=")
	if !ok || name == "" || len(s) > 128<<10 {
		return false
	}
	for i := range len(name) {
		c := name[i]
		letter := c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' && r != '\n' || r == 0x7f })
}

func (s *Server) openShell(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
	words, _ := c.Args[2].([]string)
	environment, _ := c.Args[3].([]string)
	creds, err := c.Credentials(ctx)
	if err != nil {
		return nil, err
	}
	return passed(s.shell(ctx, creds.UID, &m, c.String(0), c.String(1), words, environment, func(user, program, commandLine string) error {
		d := details{"machine", m.Name, "user", user, "program", program, "command_line", commandLine}
		return s.authorizeOwner(ctx, c, &m, hostAction(&m, "shell"), d)
	}))
}

// shell checks a request, asks authorize about it, and opens a terminal in
// which the machine's service manager runs the program.
func (s *Server) shell(ctx context.Context, uid uint32, m *registry.Machine, user, path string, words, environment []string,
	authorize func(user, program, commandLine string) error,
) (*nsexec.PTY, error) {
	r, err := parseShell(user, path, words, environment)
	if err != nil {
		return nil, err
	}
	// A machine of a user's own that is in our user namespace would get a
	// process of root's from its own owner.
	if m.UID != 0 && m.Class == registry.ClassContainer {
		if err := s.refuseHostUserNamespace(m); err != nil {
			return nil, err
		}
	}
	commandLine := strings.Join(r.args, " ")
	if r.script {
		commandLine = ""
	}
	if err := authorize(r.user, r.path, commandLine); err != nil {
		return nil, err
	}
	pty, err := s.newPTY(ctx, uid, m)
	if err != nil {
		return nil, err
	}
	peer, err := pty.Peer()
	if err == nil {
		unit := fmt.Sprintf("container-shell@%d.service", pty.Number)
		err = s.manager(ctx, m, "StartTransientUnit", unit, "fail", r.properties(pty, peer), []auxUnit{})
		_ = peer.Close()
	}
	if err != nil {
		pty.Close()
		return nil, err
	}
	return pty, nil
}

func (s *Server) refuseHostUserNamespace(m *registry.Machine) error {
	return s.withLeader(m, func(p *sys.Process) error {
		same, err := sys.SameNamespace(0, p.PID(), "user")
		if err == nil && same {
			return dbus.Errorf(dbus.ErrorAccessDenied, "Machine '%s' of user %d runs in the host's user namespace: no shell there", m.Name, m.UID)
		}
		return err
	})
}

type auxUnit struct {
	Name       string
	Properties []machine1.Property
}

// execCommand is one row of ExecStart, (sasb).
type execCommand struct {
	Path          string
	Args          []string
	IgnoreFailure bool
}

// properties are those of the transient service of a shell.
func (r *shellRequest) properties(pty *nsexec.PTY, peer *os.File) []machine1.Property {
	var out []machine1.Property
	add := func(name string, value any) {
		out = append(out, machine1.Property{Name: name, Value: godbus.MakeVariant(value)})
	}
	add("Description", "Shell for User "+r.user)
	for _, name := range []string{"StandardInputFileDescriptor", "StandardOutputFileDescriptor", "StandardErrorFileDescriptor"} {
		add(name, godbus.UnixFD(peer.Fd()))
	}
	add("SendSIGHUP", true)
	add("IgnoreSIGPIPE", false)
	add("KillMode", "mixed")
	add("TTYPath", pty.Path)
	add("TTYReset", true)
	add("UtmpIdentifier", strings.TrimPrefix(pty.Path, "/dev/"))
	add("UtmpMode", "user")
	add("PAMName", "login")
	add("WorkingDirectory", "-~")
	add("User", r.user)
	if len(r.environment) > 0 {
		add("Environment", r.environment)
	}
	words := r.args
	if r.script {
		// The service manager expands variables in arguments (systemd.service(5)).
		words = make([]string, len(r.args))
		for i, word := range r.args {
			words[i] = strings.ReplaceAll(word, "$", "$$")
		}
	}
	add("ExecStart", []execCommand{{Path: r.path, Args: words, IgnoreFailure: true}})
	return out
}
