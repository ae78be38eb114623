package server

import (
	"context"
	"time"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/registry"
)

func (s *Server) machineInterface() *dbus.Interface {
	return &dbus.Interface{Name: machine1.MachineInterface, Properties: machineProperties(), Methods: []dbus.Method{
		{Name: "Terminate", Handler: onObject(s.terminate)},
		{Name: "Kill", In: args("s whom", "i signal"), Handler: onObject(s.kill)},
		{Name: "GetAddresses", Out: args("a(iay) addresses"), Handler: onObject(s.addresses)},
		{Name: "GetSSHInfo", Out: args("s ssh_address", "s ssh_private_key_path"), Handler: onObject(s.sshInfo)},
		{Name: "GetOSRelease", Out: args("a{ss} fields"), Handler: onObject(s.osRelease)},
		{Name: "GetUIDShift", Out: args("u shift"), Handler: onObject(s.uidShift)},
		{Name: "OpenPTY", Out: args("h pty", "s pty_path"), Handler: onObject(s.openPTY)},
		{Name: "OpenLogin", Out: args("h pty", "s pty_path"), Handler: onObject(s.openLogin)},
		{Name: "OpenShell", In: args("s user", "s path", "as args", "as environment"), Out: args("h pty", "s pty_path"), Handler: onObject(s.openShell)},
		{Name: "BindMount", In: args("s source", "s destination", "b read_only", "b mkdir"), Handler: onObject(s.bindMount)},
		{Name: "CopyFrom", In: args("s source", "s destination"), Handler: onObject(s.copyFrom)},
		{Name: "CopyTo", In: args("s source", "s destination"), Handler: onObject(s.copyTo)},
		{Name: "CopyFromWithFlags", In: args("s source", "s destination", "t flags"), Handler: onObject(s.copyFrom)},
		{Name: "CopyToWithFlags", In: args("s source", "s destination", "t flags"), Handler: onObject(s.copyTo)},
		{Name: "OpenRootDirectory", Out: args("h fd"), Handler: onObject(s.openRootDirectory)},
	}}
}

// machineProperty makes a property row from a function of the snapshot.
func machineProperty(name, typ string, f func(m *registry.Machine) any) dbus.Property {
	return dbus.Property{Name: name, Type: typ, Emits: dbus.EmitsConst, Get: func(_ context.Context, object any) (any, error) {
		m := object.(registry.Machine)
		return f(&m), nil
	}}
}

func machineProperties() []dbus.Property {
	unit := func(m *registry.Machine) any { return m.Unit }
	state := machineProperty("State", "s", func(m *registry.Machine) any { return string(m.State) })
	state.Emits = dbus.EmitsFalse
	scope := machineProperty("Scope", "s", unit) // the name that Unit had first
	scope.Hidden = true
	return []dbus.Property{
		machineProperty("Name", "s", func(m *registry.Machine) any { return m.Name }),
		machineProperty("Id", "ay", func(m *registry.Machine) any { return idBytes(m.ID) }),
		machineProperty("Timestamp", "t", func(m *registry.Machine) any { return usec(m.Realtime) }),
		machineProperty("TimestampMonotonic", "t", func(m *registry.Machine) any { return uint64(m.Monotonic / time.Microsecond) }),
		machineProperty("Service", "s", func(m *registry.Machine) any { return m.Service }),
		machineProperty("Unit", "s", unit),
		scope,
		machineProperty("Subgroup", "s", func(m *registry.Machine) any { return m.Subgroup }),
		machineProperty("Leader", "u", func(m *registry.Machine) any { return uint32(m.Leader.PID) }),
		machineProperty("LeaderPIDFDId", "t", func(m *registry.Machine) any { return m.Leader.FDID }),
		machineProperty("Supervisor", "u", func(m *registry.Machine) any { return uint32(m.Supervisor.PID) }),
		machineProperty("SupervisorPIDFDId", "t", func(m *registry.Machine) any { return m.Supervisor.FDID }),
		machineProperty("Class", "s", func(m *registry.Machine) any { return string(m.Class) }),
		machineProperty("RootDirectory", "s", func(m *registry.Machine) any { return m.RootDirectory }),
		machineProperty("NetworkInterfaces", "ai", func(m *registry.Machine) any {
			out := make([]int32, len(m.NetIfs))
			for i, n := range m.NetIfs {
				out[i] = int32(n)
			}
			return out
		}),
		machineProperty("VSockCID", "u", func(m *registry.Machine) any { return m.VSockCID }),
		machineProperty("SSHAddress", "s", func(m *registry.Machine) any { return m.SSHAddress }),
		machineProperty("SSHPrivateKeyPath", "s", func(m *registry.Machine) any { return m.SSHPrivateKey }),
		state,
		machineProperty("UID", "u", func(m *registry.Machine) any { return m.UID }),
	}
}

// idBytes is empty for an unknown ID.
func idBytes(id [16]byte) []byte {
	if id == ([16]byte{}) {
		return []byte{}
	}
	return id[:]
}

// usec is a time on the bus, 0 for an unknown one.
func usec(t time.Time) uint64 {
	if t.IsZero() || t.UnixMicro() < 0 {
		return 0
	}
	return uint64(t.UnixMicro())
}
