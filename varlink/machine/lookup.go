package machine

import (
	"encoding/json"
	"math"

	"machined/internal/sys"
	"machined/registry"
	"machined/varlink"
)

// processID is the type ProcessId of the wire.
type processID struct {
	PID    int    `json:"pid"`
	FDID   uint64 `json:"pidfdId,omitempty"`
	BootID string `json:"bootId,omitempty"`
}

func newProcessID(p registry.Process) *processID {
	if p.PID <= 0 {
		return nil
	}
	return &processID{PID: p.PID, FDID: p.FDID, BootID: bootID()}
}

// target is what the lookup parameters of a call say.
type target struct {
	name *string
	pid  *processID
}

// readProcess reads a ProcessId, or a bare number.
func readProcess(p *varlink.Params, name string) *processID {
	raw := p.Raw(name)
	if raw == nil {
		return nil
	}
	var id processID
	if raw[0] != '{' {
		n := p.Int(name)
		if n == nil || *n < 0 || *n > math.MaxInt32 {
			p.Invalid(name)
			return nil
		}
		id.PID = int(*n)
		return &id
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(raw, &fields) != nil || fields["pid"] == nil {
		p.Invalid(name)
		return nil
	}
	object := p.Object(name)
	pid, fdid, boot := object.Int("pid"), object.Uint64("pidfdId"), object.String("bootId")
	if object.Done() != nil || pid == nil || *pid < 0 || *pid > math.MaxInt32 {
		p.Invalid(name)
		return nil
	}
	id.PID = int(*pid)
	if fdid != nil {
		id.FDID = *fdid
	}
	if boot != nil {
		id.BootID = *boot
	}
	return &id
}

// readTarget reads the parameters by which a machine is named.
func readTarget(p *varlink.Params) target {
	return target{name: p.String("name"), pid: readProcess(p, "pid")}
}

func (t target) empty() bool { return t.name == nil && t.pid == nil }

// find looks the machine up. A process of 0 is the caller; a name and a process
// that mean different machines mean none.
func (s *Services) find(call *varlink.Call, t target) (registry.Machine, error) {
	var byName, byPID registry.Machine
	var err error
	if t.empty() {
		return byName, varlink.NewError(errNoSuchMachine)
	}
	if t.name != nil {
		if *t.name != registry.HostName && !registry.ValidName(*t.name) {
			return byName, varlink.InvalidParameter("name")
		}
		if byName, err = s.cfg.Registry.Get(*t.name); err != nil {
			return byName, err
		}
	}
	if t.pid == nil {
		return byName, nil
	}
	if byPID, err = s.findProcess(call, *t.pid); err != nil {
		return byPID, err
	}
	if t.name != nil && byName.Name != byPID.Name {
		return byPID, varlink.NewError(errNoSuchMachine)
	}
	return byPID, nil
}

func (s *Services) findProcess(call *varlink.Call, id processID) (registry.Machine, error) {
	process, err := s.process(call, id)
	if err != nil {
		return registry.Machine{}, varlink.NewError(errNoSuchMachine)
	}
	defer process.Close()
	m, err := s.cfg.Registry.ByPID(process.PID())
	if err == nil && !process.Alive() {
		err = varlink.NewError(errNoSuchMachine)
	}
	return m, err
}

// process pins the process that a ProcessId means; the caller closes it.
func (s *Services) process(call *varlink.Call, id processID) (*sys.Process, error) {
	if id.PID == 0 {
		peer, err := call.Peer.Process()
		if err != nil {
			return nil, err
		}
		return peer.Dup()
	}
	process, err := sys.OpenProcess(id.PID)
	if err != nil {
		return nil, err
	}
	if id.FDID != 0 && process.FDID() != id.FDID || id.BootID != "" && !sameID(id.BootID, bootID()) {
		process.Close()
		return nil, varlink.NewError(errNoSuchMachine)
	}
	return process, nil
}
