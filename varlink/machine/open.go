package machine

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"machined/internal/nsexec"
	"machined/internal/sys"
	"machined/registry"
	"machined/varlink"
)

type terminal struct {
	File int    `json:"ptyFileDescriptor"`
	Path string `json:"ptyPath"`
}

// open implements Open: a bare terminal, a login prompt, or a shell.
func (s *Services) open(ctx context.Context, call *varlink.Call) (any, error) {
	p := call.Params
	t := readTarget(p)
	mode := p.RequiredString("mode")
	user, path := p.String("user"), p.String("path")
	args, environment := p.Strings("args"), p.Strings("environment")
	_ = interactive(call)
	// What only a shell needs is checked always, and of no use to the others, as
	// with stock.
	if path != nil && !strings.HasPrefix(*path, "/") {
		p.Invalid("path")
	}
	for _, variable := range environment {
		if name, _, ok := strings.Cut(variable, "="); !ok || name == "" {
			p.Invalid("environment")
		}
	}
	switch mode {
	case "tty", "login", "shell":
	default:
		p.Invalid("mode")
	}
	if err := p.Done(); err != nil {
		return nil, err
	}
	m, err := s.find(call, t)
	if err != nil {
		return nil, err
	}
	if m.Class == registry.ClassVM {
		return nil, varlink.NewError(errNotSupported)
	}
	if err := s.refuseHostUsers(m); err != nil {
		return nil, err
	}
	pty, err := s.openMode(ctx, call, m, mode, value(user), value(path), args, environment)
	if err != nil {
		return nil, err
	}
	return terminal{call.PassFile(pty.Master), pty.Path}, nil
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func (s *Services) openMode(ctx context.Context, call *varlink.Call, m registry.Machine, mode, user, path string, args, environment []string) (*nsexec.PTY, error) {
	if mode == "tty" {
		if err := s.authorize(ctx, call, &m, hostAction(m, "open-pty"), details{"machine", m.Name}); err != nil {
			return nil, err
		}
		return s.cfg.PTYs.Open(ctx, call.Peer.UID, func(ctx context.Context) (*nsexec.PTY, error) {
			if m.Class == registry.ClassHost {
				return nsexec.OpenHostPTY()
			}
			leader, err := s.cfg.Registry.Leader(m.Name)
			if err != nil {
				return nil, err
			}
			defer leader.Close()
			return nsexec.OpenPTY(ctx, leader)
		})
	}
	if s.cfg.Terminals == nil {
		return nil, varlink.NewError(errNotSupported)
	}
	if mode == "login" {
		if err := s.authorize(ctx, call, &m, hostAction(m, "login"), details{"machine", m.Name, "verb", "login"}); err != nil {
			return nil, err
		}
		pty, err := s.cfg.Terminals.OpenLogin(ctx, call.Peer.UID, m)
		return pty, noIPC(err)
	}
	pty, err := s.cfg.Terminals.OpenShell(ctx, call.Peer.UID, m, user, path, args, environment,
		func(user, program, commandLine string) error {
			return s.authorize(ctx, call, &m, hostAction(m, "shell"), details{
				"machine", m.Name, "verb", "shell", "user", user, "program", program, "command_line", commandLine,
			})
		})
	return pty, noIPC(err)
}

// noIPC gives the error of a machine without a bus its name.
func noIPC(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return varlink.NewError(errNoIPC)
	}
	return err
}

// refuseHostUsers denies terminals of another user's machine that runs in the
// host's user namespace: root in there is root out here.
func (s *Services) refuseHostUsers(m registry.Machine) error {
	if s.cfg.User || m.UID == 0 || m.Class != registry.ClassContainer {
		return nil
	}
	leader, err := s.cfg.Registry.Leader(m.Name)
	if err != nil {
		return err
	}
	defer leader.Close()
	same, err := sys.SameNamespace(0, leader.PID(), "user")
	if err != nil {
		return err
	}
	if same || !leader.Alive() {
		return varlink.NewError(varlink.ErrorPermissionDenied)
	}
	return nil
}
