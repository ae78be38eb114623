package server

import (
	"context"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/internal/nsexec"
	"machined/internal/sys"
	"machined/registry"
)

// idKind is what differs between users and groups.
type idKind struct {
	read    func(*sys.Process) (nsexec.IDMap, error)
	name    string // for messages
	title   string
	missing string // error name
}

var (
	userIDs  = idKind{nsexec.UserMap, "user", "User", machine1.ErrorNoSuchUserMapping}
	groupIDs = idKind{nsexec.GroupMap, "group", "Group", machine1.ErrorNoSuchGroupMapping}
)

// hostIDs are never a machine's.
const hostIDs = 65536

// noID is the ID that means none (setresuid(2)).
const noID = ^uint32(0)

func (s *Server) mapFrom(kind idKind) machineOp {
	return func(_ context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
		id := c.Uint32(0)
		if id == noID {
			return nil, invalid("Invalid %s ID %d", kind.name, id)
		}
		if m.Class != registry.ClassContainer {
			return nil, invalid("Not supported for non-container machines.")
		}
		var outer uint32
		var found bool
		err := s.withLeader(&m, func(p *sys.Process) error {
			ids, err := kind.read(p)
			if err == nil {
				outer, found = ids.Outer(id)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		if !found {
			return nil, dbus.Errorf(kind.missing, "Machine '%s' has no matching %s mappings.", m.Name, kind.name)
		}
		return []any{outer}, nil
	}
}

func (s *Server) mapTo(kind idKind) dbus.Handler {
	return func(_ context.Context, c *dbus.Call, _ any) ([]any, error) {
		id := c.Uint32(0)
		if id == noID {
			return nil, invalid("Invalid %s ID %d", kind.name, id)
		}
		if id < hostIDs {
			return nil, dbus.Errorf(kind.missing, "%s %d belongs to host %s range", kind.title, id, map[string]string{"user": "UID", "group": "GID"}[kind.name])
		}
		for _, m := range s.reg.List() {
			if m.Class != registry.ClassContainer {
				continue
			}
			var inner uint32
			var found bool
			// A machine that ends meanwhile has no mapping.
			_ = s.withLeader(&m, func(p *sys.Process) error {
				ids, err := kind.read(p)
				if err == nil {
					inner, found = ids.Inner(id)
				}
				return err
			})
			if found {
				return []any{m.Name, machine1.MachinePath(m.Name), inner}, nil
			}
		}
		return nil, dbus.Errorf(kind.missing, "No matching %s mapping for %d.", kind.name, id)
	}
}
