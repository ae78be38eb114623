package server

import (
	"context"
	"errors"
	"fmt"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/internal/sys"
	"machined/registry"
)

// registration is a request as it came in, before its processes are pinned.
type registration struct {
	registry.CreateRequest
	id       []byte
	class    string
	leader   uint32 // 0: the caller
	leaderFD int    // -1: none; the caller's descriptor
	fdID     uint64 // pidfd inode of leader, 0: not given
}

func (s *Server) createMachine(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	r, err := positional(c, true)
	if err != nil {
		return nil, err
	}
	return s.enter(ctx, c, r, actionCreate, s.reg.Create)
}

func (s *Server) registerMachine(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	r, err := positional(c, false)
	if err != nil {
		return nil, err
	}
	return s.enter(ctx, c, r, actionRegister, s.reg.Register)
}

func (s *Server) createMachineEx(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	r, err := extended(c)
	if err == nil {
		r.Scope, err = scopeProperties(c.Args[2])
	}
	if err != nil {
		return nil, err
	}
	return s.enter(ctx, c, r, actionCreate, s.reg.Create)
}

func (s *Server) registerMachineEx(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	r, err := extended(c)
	if err != nil {
		return nil, err
	}
	return s.enter(ctx, c, r, actionRegister, s.reg.Register)
}

// positional decodes CreateMachine, RegisterMachine and their twins WithNetwork.
func positional(c *dbus.Call, scope bool) (*registration, error) {
	r := &registration{leaderFD: -1}
	r.VSockCID = registry.VSockCIDAny
	r.Name, r.Service, r.class, r.RootDirectory = c.String(0), c.String(2), c.String(3), c.String(5)
	r.id, _ = c.Args[1].([]byte)
	r.leader = c.Uint32(4)
	rest := c.Args[6:]
	if len(rest) > 0 {
		if ifs, ok := rest[0].([]int32); ok {
			r.setNetIfs(ifs)
			rest = rest[1:]
		}
	}
	if !scope || len(rest) == 0 {
		return r, nil
	}
	var err error
	r.Scope, err = scopeProperties(rest[0])
	return r, err
}

func (r *registration) setNetIfs(ifs []int32) {
	r.NetIfs = make([]int, len(ifs))
	for i, n := range ifs {
		r.NetIfs[i] = int(n)
	}
}

// extended decodes the properties of CreateMachineEx and RegisterMachineEx.
func extended(c *dbus.Call) (*registration, error) {
	r := &registration{leaderFD: -1, class: ""}
	r.Name, r.VSockCID = c.String(0), registry.VSockCIDAny
	var list []machine1.Property
	if err := godbus.Store(c.Args[1:2], &list); err != nil {
		return nil, invalid("Invalid machine properties: %v", err)
	}
	havePID, haveID := false, false
	for _, p := range list {
		ok := false
		value := p.Value.Value()
		switch p.Name {
		case "Id":
			r.id, ok = value.([]byte)
		case "Service":
			r.Service, ok = value.(string)
		case "Class":
			r.class, ok = value.(string)
		case "LeaderPIDFD":
			var fd godbus.UnixFD
			fd, ok = value.(godbus.UnixFD)
			r.leaderFD = int(fd)
		case "LeaderPID":
			r.leader, ok = value.(uint32)
			havePID = true
		case "LeaderPIDFDID":
			r.fdID, ok = value.(uint64)
			haveID = true
		case "RootDirectory":
			r.RootDirectory, ok = value.(string)
		case "NetworkInterfaces":
			var ifs []int32
			ifs, ok = value.([]int32)
			r.setNetIfs(ifs)
		case "VSockCID":
			r.VSockCID, ok = value.(uint32)
		case "SSHAddress":
			r.SSHAddress, ok = value.(string)
		case "SSHPrivateKeyPath":
			r.SSHPrivateKey, ok = value.(string)
		default:
			return nil, invalid("Unknown machine property '%.64s'", p.Name)
		}
		if !ok {
			return nil, invalid("Machine property '%s' has the wrong type '%s'", p.Name, p.Value.Signature())
		}
	}
	if havePID != haveID {
		return nil, invalid("LeaderPID and LeaderPIDFDID must be used together")
	}
	return r, nil
}

// scopeProperties decodes a(sv), keeping the type of each value for PID 1.
func scopeProperties(arg any) (registry.ScopeProperties, error) {
	var list []machine1.Property
	if err := godbus.Store([]any{arg}, &list); err != nil {
		return nil, invalid("Invalid scope properties: %v", err)
	}
	out := make(registry.ScopeProperties, len(list))
	for i, p := range list {
		v, err := dbus.Typed(p.Value)
		if err != nil {
			return nil, invalid("Invalid scope property '%.64s': %v", p.Name, err)
		}
		out[i] = registry.ScopeProperty{Name: p.Name, Value: v}
	}
	return out, nil
}

// enter checks a registration, has it authorised, and does it.
func (s *Server) enter(ctx context.Context, c *dbus.Call, r *registration, action string,
	do func(context.Context, registry.CreateRequest) (registry.Machine, error),
) ([]any, error) {
	switch len(r.id) {
	case 0:
	case 16:
		copy(r.ID[:], r.id)
	default:
		return nil, invalid("Invalid machine ID parameter: %d bytes, not 0 or 16", len(r.id))
	}
	if r.class == string(registry.ClassHost) {
		return nil, invalid("Invalid machine class parameter")
	}
	r.Class = registry.Class(r.class)
	creds, err := c.Credentials(ctx)
	if err != nil {
		return nil, err
	}
	// The plain mistakes first: all that does not need to look at a process.
	if r.leader == 1 {
		if r.Leader, err = sys.OpenProcess(1); err != nil {
			return nil, err
		}
		defer r.Leader.Close()
	}
	s.reg.AwaitEnd(ctx, r.Name)
	if err := s.reg.Check(r.CreateRequest); err != nil {
		return nil, err
	}
	// A caller outside of our PID namespace has no process that we can name. It
	// may name another one.
	caller, err := creds.Process()
	if err != nil && (creds.PID != 0 || r.leader == 0 && r.leaderFD < 0) {
		return nil, err
	}
	if caller != nil {
		defer caller.Close()
	}
	leader, err := r.pinLeader(caller)
	if err != nil {
		return nil, err
	}
	defer leader.Close()
	r.Leader = leader
	if leader.PID() == 1 {
		return nil, invalid("Invalid leader PID")
	}
	if caller != nil && leader.PID() != caller.PID() {
		r.Supervisor = caller
	}
	if err := s.authorize(ctx, c, action, details{"name", r.Name, "class", r.class}); err != nil {
		return nil, err
	}
	r.UID = creds.UID
	r.Sender = registry.Credentials{UID: creds.UID, PID: creds.PID, Trusted: creds.UID == 0}
	m, err := do(ctx, r.CreateRequest)
	if err != nil {
		return nil, err
	}
	return []any{machine1.MachinePath(m.Name)}, nil
}

// pinLeader returns a handle of its own on the leader. All that was said about
// it must agree.
func (r *registration) pinLeader(caller *sys.Process) (*sys.Process, error) {
	var p *sys.Process
	var err error
	switch {
	case r.leaderFD >= 0:
		p, err = sys.FromPIDFD(r.leaderFD)
	case r.leader != 0:
		p, err = sys.OpenProcess(int(r.leader))
	default:
		return caller.Dup()
	}
	switch {
	case errors.Is(err, unix.ESRCH) && r.leader != 0:
		return nil, dbus.Errorf(dbus.ErrnoName(unix.ESRCH), "Failed to pin process %d: No such process", r.leader)
	case err != nil:
		return nil, fmt.Errorf("pin leader of machine %q: %w", r.Name, err)
	}
	if r.leader != 0 && p.PID() != int(r.leader) || r.fdID != 0 && p.FDID() != r.fdID {
		p.Close()
		return nil, fmt.Errorf("the leader's PID, pidfd and pidfd id name different processes: %w", unix.ESRCH)
	}
	return p, nil
}
