package server

import (
	"context"
	"math"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/registry"
)

// args is short in the tables below.
var args = dbus.Args

// machineOp is a method that exists on Manager, with the machine's name as
// first argument, and on the Machine object without. It sees the arguments
// without the name.
type machineOp func(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error)

// byName makes a Manager method of op.
func (s *Server) byName(op machineOp) dbus.Handler {
	return handler(func(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
		m, err := s.reg.Get(c.String(0))
		if err != nil {
			return nil, err
		}
		c.Args = c.Args[1:]
		return op(ctx, c, m)
	})
}

// onObject makes a Machine method of op.
func onObject(op machineOp) dbus.Handler {
	return handler(func(ctx context.Context, c *dbus.Call, object any) ([]any, error) {
		return op(ctx, c, object.(registry.Machine))
	})
}

func (s *Server) managerInterface() *dbus.Interface {
	scope := []string{"s name", "ay id", "s service", "s class", "u leader", "s root_directory"}
	with := func(more ...string) []dbus.Arg { return args(append(scope[:len(scope):len(scope)], more...)...) }
	path := args("o path")
	i := &dbus.Interface{Name: machine1.ManagerInterface, Methods: []dbus.Method{
		{Name: "GetMachine", In: args("s name"), Out: args("o machine"), Handler: s.byName(s.getMachine), Quick: s.quickGetMachine},
		{Name: "GetImage", In: args("s name"), Out: args("o image"), Handler: handler(s.getImage)},
		{Name: "GetMachineByPID", In: args("u pid"), Out: args("o machine"), Handler: handler(s.getMachineByPID), Quick: s.quickByPID},
		{Name: "ListMachines", Out: args("a(ssso) machines"), Handler: handler(s.listMachines), Quick: s.quickList},
		{Name: "ListImages", Out: args("a(ssbttto) images"), Handler: handler(s.listImages)},
		{Name: "CreateMachine", In: with("a(sv) scope_properties"), Out: path, Privileged: true, Handler: handler(s.createMachine)},
		{Name: "CreateMachineWithNetwork", In: with("ai ifindices", "a(sv) scope_properties"), Out: path, Privileged: true, Handler: handler(s.createMachine)},
		{Name: "CreateMachineEx", In: args("s name", "a(sv) properties", "a(sv) scope_properties"), Out: path, Handler: handler(s.createMachineEx)},
		{Name: "RegisterMachine", In: with(), Out: path, Privileged: true, Handler: handler(s.registerMachine)},
		{Name: "RegisterMachineWithNetwork", In: with("ai ifindices"), Out: path, Privileged: true, Handler: handler(s.registerMachine)},
		{Name: "RegisterMachineEx", In: args("s name", "a(sv) properties"), Out: path, Handler: handler(s.registerMachineEx)},
		{Name: "UnregisterMachine", In: args("s name"), Handler: s.byName(s.unregister)},
		{Name: "TerminateMachine", In: args("s id"), Handler: s.byName(s.terminate)},
		{Name: "KillMachine", In: args("s name", "s whom", "i signal"), Handler: s.byName(s.kill)},
		{Name: "GetMachineAddresses", In: args("s name"), Out: args("a(iay) addresses"), Handler: s.byName(s.addresses)},
		{Name: "GetMachineSSHInfo", In: args("s name"), Out: args("s ssh_address", "s ssh_private_key_path"), Handler: s.byName(s.sshInfo)},
		{Name: "GetMachineOSRelease", In: args("s name"), Out: args("a{ss} fields"), Handler: s.byName(s.osRelease)},
		{Name: "OpenMachinePTY", In: args("s name"), Out: args("h pty", "s pty_path"), Privileged: true, Handler: s.byName(s.openPTY)},
		{Name: "OpenMachineLogin", In: args("s name"), Out: args("h pty", "s pty_path"), Handler: s.byName(s.openLogin)},
		{Name: "OpenMachineShell", In: args("s name", "s user", "s path", "as args", "as environment"), Out: args("h pty", "s pty_path"), Handler: s.byName(s.openShell)},
		{Name: "BindMountMachine", In: args("s name", "s source", "s destination", "b read_only", "b mkdir"), Handler: s.byName(s.bindMount)},
		{Name: "CopyFromMachine", In: args("s name", "s source", "s destination"), Handler: s.byName(s.copyFrom)},
		{Name: "CopyToMachine", In: args("s name", "s source", "s destination"), Handler: s.byName(s.copyTo)},
		{Name: "CopyFromMachineWithFlags", In: args("s name", "s source", "s destination", "t flags"), Handler: s.byName(s.copyFrom)},
		{Name: "CopyToMachineWithFlags", In: args("s name", "s source", "s destination", "t flags"), Handler: s.byName(s.copyTo)},
		{Name: "OpenMachineRootDirectory", In: args("s name"), Out: args("h fd"), Handler: s.byName(s.openRootDirectory)},
		{Name: "GetMachineUIDShift", In: args("s name"), Out: args("u shift"), Handler: s.byName(s.uidShift)},
	}}
	i.Methods = append(i.Methods, s.managerImageMethods()...)
	i.Methods = append(i.Methods,
		dbus.Method{Name: "MapFromMachineUser", In: args("s name", "u uid_inner"), Out: args("u uid_outer"), Handler: s.byName(s.mapFrom(userIDs))},
		dbus.Method{Name: "MapToMachineUser", In: args("u uid_outer"), Out: args("s machine_name", "o machine_path", "u uid_inner"), Handler: handler(s.mapTo(userIDs))},
		dbus.Method{Name: "MapFromMachineGroup", In: args("s name", "u gid_inner"), Out: args("u gid_outer"), Handler: s.byName(s.mapFrom(groupIDs))},
		dbus.Method{Name: "MapToMachineGroup", In: args("u gid_outer"), Out: args("s machine_name", "o machine_path", "u gid_inner"), Handler: handler(s.mapTo(groupIDs))},
	)
	i.Signals = []dbus.Signal{
		{Name: "MachineNew", Args: args("s machine", "o path")},
		{Name: "MachineRemoved", Args: args("s machine", "o path")},
	}
	i.Properties = s.poolProperties()
	if s.images == nil {
		i.Methods = withoutImages(i.Methods)
	}
	return i
}

func (s *Server) getMachine(_ context.Context, _ *dbus.Call, m registry.Machine) ([]any, error) {
	return []any{machine1.MachinePath(m.Name)}, nil
}

func (s *Server) getMachineByPID(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	if c.Uint32(0) > math.MaxInt32 {
		return nil, dbus.Errorf(dbus.ErrorInvalidArgs, "Invalid argument: PID %d", c.Uint32(0))
	}
	pid := int(c.Uint32(0))
	if pid == 0 {
		creds, err := c.Credentials(ctx)
		if err != nil {
			return nil, err
		}
		pid = creds.PID
	}
	m, err := s.reg.ByPID(pid)
	if err != nil {
		return nil, dbus.Errorf(machine1.ErrorNoMachineForPID, "PID %d does not belong to any known machine", pid)
	}
	return []any{machine1.MachinePath(m.Name)}, nil
}

func (s *Server) listMachines(context.Context, *dbus.Call, any) ([]any, error) {
	return []any{s.listed()}, nil
}

func (s *Server) listed() machine1.ListedMachines {
	list := s.reg.List()
	out := make(machine1.ListedMachines, len(list))
	for i := range list {
		m := &list[i]
		out[i] = machine1.ListedMachine{Name: m.Name, Class: string(m.Class), Service: m.Service, Path: machine1.MachinePath(m.Name)}
	}
	return out
}
