package server

import (
	"slices"

	"machined/dbus"
	"machined/dbus/machine1"
)

// These are the look-ups that programs make by the thousand. They do what the
// handlers of their methods do where those succeed, and ask nobody.

func (s *Server) quickGetMachine(q *dbus.QuickCall, b []byte) ([]byte, bool) {
	name := q.Bytes()
	if len(name) > 64 {
		return b, false
	}
	m, err := s.reg.Get(string(name))
	if err != nil {
		return b, false
	}
	return dbus.AppendString(b, string(machine1.MachinePath(m.Name))), true
}

func (s *Server) quickByPID(q *dbus.QuickCall, b []byte) ([]byte, bool) {
	m, ok := s.reg.ByMember(int(q.Uint32())) // 0, the caller, takes a question to the bus
	if !ok {
		return b, false
	}
	return dbus.AppendString(b, string(machine1.MachinePath(m.Name))), true
}

// listCache is the encoded reply of ListMachines. It is used by the reader of
// the connection only.
type listCache struct {
	valid   bool
	changes uint64
	body    []byte
}

func (s *Server) quickList(_ *dbus.QuickCall, b []byte) ([]byte, bool) {
	c := &s.list
	// The count is read first: what changes in between makes the list newer
	// than its number, never older.
	if changes := s.reg.Changes(); !c.valid || c.changes != changes {
		c.body = slices.Clip(s.listed().AppendDBus(c.body[:0]))
		c.changes, c.valid = changes, true
	}
	return append(b, c.body...), true
}
