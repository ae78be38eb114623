package machine

import (
	"context"
	"errors"

	"machined/polkit"
	"machined/registry"
	"machined/varlink"
)

const actionPrefix = "org.freedesktop.machine1."

// details are what a polkit rule is told: key, value, key, value...
type details []string

func (d details) fields() map[string]string {
	out := make(map[string]string, len(d)/2)
	for i := 0; i+1 < len(d); i += 2 {
		out[d[i]] = d[i+1]
	}
	return out
}

// interactive reads the parameter that all methods with an action have.
func interactive(call *varlink.Call) bool {
	return call.Params.Flag("allowInteractiveAuthentication")
}

func (s *Services) privileged(call *varlink.Call) bool {
	return call.Peer.UID == 0 || call.Peer.UID == s.cfg.OwnUID
}

// authorize lets the caller do action, or says why not. Root and the user whom
// this instance serves need no question, nor does the owner of the machine
// owned, if there is one.
func (s *Services) authorize(ctx context.Context, call *varlink.Call, owned *registry.Machine, action string, d details) error {
	ask := interactive(call)
	if s.privileged(call) || owned != nil && s.cfg.Registry.Owns(owned.Name, call.Peer.UID) {
		return nil
	}
	if s.cfg.Authority == nil || s.cfg.User {
		return varlink.NewError(varlink.ErrorPermissionDenied)
	}
	// Without a pidfd the caller may have been replaced by another program.
	process, err := call.Peer.Process()
	if err == nil {
		err = s.cfg.Authority.CheckProcess(ctx, process, call.Peer.UID, actionPrefix+action, d.fields(), ask)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, polkit.ErrInteractionRequired):
		return varlink.NewError(varlink.ErrorInteractiveAuthRequired)
	}
	s.log.WithField("sender", call.Peer.PID).WithField("action", action).WithError(err).Debug("refused")
	return varlink.NewError(varlink.ErrorPermissionDenied)
}

// hostAction is the variant of an action for the host itself.
func hostAction(m registry.Machine, action string) string {
	if m.Class == registry.ClassHost {
		return "host-" + action
	}
	return action
}
