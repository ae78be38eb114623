package server

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"machined/dbus"
	"machined/internal/nsexec"
	"machined/registry"
)

// OpenLogin opens a terminal with a login prompt for a caller that has been
// authorised already; machined's varlink services use it.
func (s *Server) OpenLogin(ctx context.Context, m registry.Machine) (*nsexec.PTY, error) {
	pty, err := s.newPTY(&m)
	if err != nil {
		return nil, domain(err)
	}
	unit := fmt.Sprintf("container-getty@%d.service", pty.Number)
	if err := s.manager(ctx, &m, "StartUnit", unit, "replace"); err != nil {
		pty.Close()
		return nil, domain(err)
	}
	return pty, nil
}

// OpenShell is OpenMachineShell for callers that are not on the bus: it checks
// the request, asks authorize about it, and then opens the terminal.
func (s *Server) OpenShell(ctx context.Context, m registry.Machine, user, path string, args, environment []string,
	authorize func(user, program, commandLine string) error,
) (*nsexec.PTY, error) {
	r, err := parseShell(&dbus.Call{Args: []any{user, path, args, environment}})
	if err != nil {
		return nil, domain(err)
	}
	words := strings.Join(r.args, " ")
	if r.script {
		words = ""
	}
	if err := authorize(r.user, r.path, words); err != nil {
		return nil, err
	}
	pty, err := s.newPTY(&m)
	if err != nil {
		return nil, domain(err)
	}
	peer, err := pty.Peer()
	if err == nil {
		unit := fmt.Sprintf("container-shell@%d.service", pty.Number)
		err = s.manager(ctx, &m, "StartTransientUnit", unit, "fail", r.properties(pty, peer), []auxUnit{})
		_ = peer.Close()
	}
	if err != nil {
		pty.Close()
		return nil, domain(err)
	}
	return pty, nil
}

// domain gives errors that only have a name on the bus the sentinel that it
// stands for.
func domain(err error) error {
	var own *dbus.Error
	if !errors.As(err, &own) {
		return err
	}
	for _, row := range errorNames {
		if row.name == own.Name {
			return fmt.Errorf("%w: %w", row.is, err)
		}
	}
	return err
}

// Binds is the record of what has been bound into machines, which all who bind
// must share.
func (s *Server) Binds() *nsexec.Binds { return s.binds }
