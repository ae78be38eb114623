package server

import (
	"context"
	"errors"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/polkit"
	"machined/registry"
)

// Actions of the polkit policy, without their prefix.
const (
	actionManage       = "manage-machines"
	actionManageImages = "manage-images"
	actionCreate       = "create-machine"
	actionRegister     = "register-machine"
	actionInspect      = "inspect-machines"
)

// details are what a polkit rule is told: key, value, key, value...
type details []string

func (d details) fields() map[string]string {
	out := make(map[string]string, len(d)/2)
	for i := 0; i+1 < len(d); i += 2 {
		out[d[i]] = d[i+1]
	}
	return out
}

// authorize lets the caller do action, or says why not. Root and the user whom
// this instance serves need no question.
func (s *Server) authorize(ctx context.Context, c *dbus.Call, action string, d details) error {
	return s.authorizeAs(ctx, c, action, d, c.Interactive, nil)
}

// authorizeOwner is authorize for acts that the owner of a machine may do too.
func (s *Server) authorizeOwner(ctx context.Context, c *dbus.Call, m *registry.Machine, action string, d details) error {
	return s.authorizeAs(ctx, c, action, d, c.Interactive, m)
}

func (s *Server) authorizeAs(ctx context.Context, c *dbus.Call, action string, d details, interactive bool, owned *registry.Machine) error {
	creds, err := c.Credentials(ctx)
	if err != nil {
		return err
	}
	if creds.UID == 0 || creds.UID == s.ownUID || owned != nil && s.reg.Owns(owned.Name, creds.UID) {
		return nil
	}
	return s.ask(ctx, c, action, d, interactive)
}

// ask puts the question to the authority. Where there is none, the answer is no.
func (s *Server) ask(ctx context.Context, c *dbus.Call, action string, d details, interactive bool) error {
	if s.auth == nil {
		return dbus.Errorf(dbus.ErrorAccessDenied, "Access denied")
	}
	err := s.auth.Check(ctx, c.Sender, machine1.BusName+"."+action, d.fields(), interactive)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, polkit.ErrInteractionRequired):
		return dbus.Errorf(dbus.ErrorInteractiveAuthorizationRequired, "Interactive authentication required.")
	}
	s.log.WithField("sender", c.Sender).WithField("action", action).WithError(err).Debug("refused")
	return dbus.Errorf(dbus.ErrorAccessDenied, "Access denied")
}

// hostAction is the variant of an action for the host itself.
func hostAction(m *registry.Machine, action string) string {
	if m.Class == registry.ClassHost {
		return "host-" + action
	}
	return action
}
