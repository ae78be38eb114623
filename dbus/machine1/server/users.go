package server

import (
	"context"
	"errors"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/internal/mapped"
	"machined/registry"
)

// idKind is what differs between users and groups on the bus.
type idKind struct {
	kind    mapped.Kind
	name    string // for messages
	title   string
	ids     string
	missing string // error name
}

var (
	userIDs  = idKind{mapped.User, "user", "User", "UID", machine1.ErrorNoSuchUserMapping}
	groupIDs = idKind{mapped.Group, "group", "Group", "GID", machine1.ErrorNoSuchGroupMapping}
)

func (s *Server) mapFrom(k idKind) machineOp {
	return func(_ context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
		id := c.Uint32(0)
		if !mapped.ValidID(id) {
			return nil, invalid("Invalid %s ID %d", k.name, id)
		}
		if m.Class != registry.ClassContainer {
			return nil, invalid("Not supported for non-container machines.")
		}
		outer, err := s.ids.FromMachine(m, k.kind, id)
		if errors.Is(err, mapped.ErrNotFound) {
			return nil, dbus.Errorf(k.missing, "Machine '%s' has no matching %s mappings.", m.Name, k.name)
		}
		if err != nil {
			return nil, err
		}
		return []any{outer}, nil
	}
}

func (s *Server) mapTo(k idKind) dbus.Handler {
	return func(_ context.Context, c *dbus.Call, _ any) ([]any, error) {
		id := c.Uint32(0)
		if !mapped.ValidID(id) {
			return nil, invalid("Invalid %s ID %d", k.name, id)
		}
		if id < mapped.FirstID {
			return nil, dbus.Errorf(k.missing, "%s %d belongs to host %s range", k.title, id, k.ids)
		}
		m, inner, err := s.ids.ToMachine(k.kind, id)
		if err != nil {
			return nil, dbus.Errorf(k.missing, "No matching %s mapping for %d.", k.name, id)
		}
		return []any{m.Name, machine1.MachinePath(m.Name), inner}, nil
	}
}
