package server

import (
	"context"
	"errors"
	"fmt"

	"machined/dbus"
	"machined/internal/netaddr"
	"machined/internal/nsexec"
	"machined/registry"
)

// OpenLogin opens a terminal with a login prompt for a caller that has been
// authorised already; machined's varlink services use it.
func (s *Server) OpenLogin(ctx context.Context, uid uint32, m registry.Machine) (*nsexec.PTY, error) {
	pty, err := s.login(ctx, uid, &m)
	return pty, domain(err)
}

// OpenShell is OpenMachineShell for callers that are not on the bus: it checks
// the request, asks authorize about it, and then opens the terminal.
func (s *Server) OpenShell(ctx context.Context, uid uint32, m registry.Machine, user, path string, args, environment []string,
	authorize func(user, program, commandLine string) error,
) (*nsexec.PTY, error) {
	pty, err := s.shell(ctx, uid, &m, user, path, args, environment, authorize)
	return pty, domain(err)
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

// PTYs counts the terminals of users, for all who open some.
func (s *Server) PTYs() *nsexec.PTYs { return s.ptys }

// Net is where the addresses of machines are asked for, with one socket per
// machine for all who ask.
func (s *Server) Net() *netaddr.Cache { return s.net }
