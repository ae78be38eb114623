package machine

import (
	"context"
	"errors"
	"path/filepath"

	"machined/internal/sys"
	"machined/registry"
	"machined/varlink"
)

// register implements Register: of a leader in the unit that it is in, or, with
// allocateUnit, in a new scope.
func (s *Services) register(ctx context.Context, call *varlink.Call) (any, error) {
	p := call.Params
	req := registry.CreateRequest{Name: p.RequiredString("name"), VSockCID: registry.VSockCIDAny, UID: call.Peer.UID}
	class := p.RequiredString("class")
	if id := p.String("id"); id != nil {
		parsed, ok := parseID(*id)
		if !ok {
			p.Invalid("id")
		}
		req.ID = parsed
	}
	text := func(name string, to *string) {
		if v := p.String(name); v != nil {
			*to = *v
		}
	}
	text("service", &req.Service)
	text("rootDirectory", &req.RootDirectory)
	text("sshAddress", &req.SSHAddress)
	text("sshPrivateKeyPath", &req.SSHPrivateKey)
	text("controlAddress", &req.ControlAddress)
	for _, path := range []struct{ name, value string }{
		{"rootDirectory", req.RootDirectory},
		{"sshPrivateKeyPath", req.SSHPrivateKey},
		{"controlAddress", req.ControlAddress},
	} {
		if path.value != "" && !filepath.IsAbs(path.value) {
			p.Invalid(path.name)
		}
	}
	if cid := p.Uint32("vSockCid"); cid != nil {
		req.VSockCID = *cid
	}
	for _, i := range p.Ints("ifIndices") {
		if i <= 0 || i > 1<<31-1 {
			p.Invalid("ifIndices")
			break
		}
		req.NetIfs = append(req.NetIfs, int(i))
	}
	number, leader := readProcess(p, "leader"), readProcess(p, "leaderProcessId")
	// Taken, and not believed: the supervisor is the caller.
	_, _ = readProcess(p, "supervisor"), readProcess(p, "supervisorProcessId")
	allocate := p.Flag("allocateUnit")
	_ = interactive(call)
	req.Class = registry.Class(class)
	if req.Class != registry.ClassContainer && req.Class != registry.ClassVM {
		p.Invalid("class")
	}
	if !registry.ValidName(req.Name) {
		p.Invalid("name")
	}
	if err := p.Done(); err != nil {
		return nil, err
	}
	if leader == nil {
		leader = number
	} else if number != nil && number.PID != leader.PID {
		return nil, varlink.InvalidParameter("leader")
	}
	if leader == nil {
		leader = &processID{} // the caller
	}
	process, err := s.process(call, *leader)
	if err != nil {
		if leader.PID == 0 {
			return nil, err
		}
		return nil, varlink.InvalidParameter("leader")
	}
	defer process.Close()
	req.Leader = process
	if supervisor := s.supervisor(call, process); supervisor != nil {
		defer supervisor.Close()
		req.Supervisor = supervisor
	}
	s.cfg.Registry.AwaitEnd(ctx, req.Name)
	if err := s.cfg.Registry.Check(req); err != nil {
		if errors.Is(err, registry.ErrInvalid) {
			return nil, varlink.InvalidParameter(parameterOf(req))
		}
		return nil, err
	}
	action := "register-machine"
	if allocate {
		action = "create-machine"
	}
	if err := s.authorize(ctx, call, nil, action, details{"name", req.Name, "class", class}); err != nil {
		return nil, err
	}
	req.Sender = registry.Credentials{UID: call.Peer.UID, PID: call.Peer.PID, Trusted: s.privileged(call)}
	if allocate {
		_, err = s.cfg.Registry.Create(ctx, req)
	} else {
		_, err = s.cfg.Registry.Register(ctx, req)
	}
	return nil, err
}

// parameterOf is the parameter to blame for a request that the registry finds
// invalid: all that is not checked above.
func parameterOf(req registry.CreateRequest) string {
	switch {
	case req.Leader.PID() == 1:
		return "leader"
	case len(req.NetIfs) > 0:
		return "ifIndices"
	}
	return "service"
}

// supervisor is the caller, where it is not the leader itself.
func (s *Services) supervisor(call *varlink.Call, leader *sys.Process) *sys.Process {
	peer, err := call.Peer.Process()
	if err != nil || peer.PID() == leader.PID() {
		return nil
	}
	dup, err := peer.Dup()
	if err != nil {
		return nil
	}
	return dup
}
