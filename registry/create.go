package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
	"machined/internal/unit"
)

// Create registers a machine and puts its leader into a new scope. It returns
// when the scope is there and the state file is written; after an error neither
// is. The listeners have heard of the machine before it returns.
func (r *Registry) Create(ctx context.Context, req CreateRequest) (Machine, error) {
	return r.add(ctx, req, unit.ScopeName(req.Name), "", true)
}

// Register registers a machine whose leader stays in the unit that it is in.
func (r *Registry) Register(ctx context.Context, req CreateRequest) (Machine, error) {
	if err := r.Check(req); err != nil {
		return Machine{}, err
	}
	if err := r.mayRegister(req); err != nil {
		return Machine{}, err
	}
	unitName, subgroup, err := r.unitOf(req.Leader.PID())
	if err != nil {
		return Machine{}, fmt.Errorf("find unit of process %d: %w", req.Leader.PID(), err)
	}
	return r.add(ctx, req, unitName, lastingSubgroup(subgroup), false)
}

// lastingSubgroup is the subgroup to keep for a machine. A spawner divides its
// unit into "supervisor" and "payload", and registers before or after it moves
// the leader from one to the other: the machine then is the whole unit.
func lastingSubgroup(subgroup string) string {
	if subgroup == "supervisor" || subgroup == "payload" {
		return ""
	}
	return subgroup
}

// unitOf returns the unit of a process and the cgroup below it; "" for a
// process that is in no unit.
func (r *Registry) unitOf(pid int) (unitName, subgroup string, err error) {
	path, err := sys.CgroupOf(pid)
	if err != nil {
		return "", "", err
	}
	unitName, subgroup, err = unit.OfCgroup(path, r.cfg.Backend.CgroupPrefix())
	if err != nil || strings.HasSuffix(unitName, ".slice") {
		// A cgroup that some other manager has made, or a slice, which holds
		// much that is not the machine's and must never be stopped or killed
		// for it. The machine then lives and ends with its leader alone.
		return "", "", nil
	}
	return unitName, subgroup, nil
}

func (r *Registry) add(ctx context.Context, req CreateRequest, unitName, subgroup string, create bool) (Machine, error) {
	if err := r.Check(req); err != nil {
		return Machine{}, err
	}
	if err := r.mayRegister(req); err != nil {
		return Machine{}, err
	}
	if !req.Leader.Alive() {
		return Machine{}, fmt.Errorf("leader process %d of machine %q: %w", req.Leader.PID(), req.Name, unix.ESRCH)
	}
	e, err := newEntry(req, unitName, subgroup)
	if err != nil {
		return Machine{}, err
	}
	e.ownScope, e.jobPending = create, create
	e.m.Shared = !create && r.shared(e.m.Leader.PID, unitName, e.m.UID)
	if err := r.reserve(e); err != nil {
		e.close()
		return Machine{}, err
	}
	// The state file comes first: a full /run must not cost a process its
	// scope, and a crash in between leaves a file that Load recognises as
	// stale because the leader is not in that unit.
	if err := r.files.save(&e.m); err != nil {
		_ = r.files.remove(&e.m)
		r.forget(e)
		return Machine{}, err
	}
	var job unit.Job
	if create {
		job, err = r.cfg.Backend.StartScope(ctx, unit.Scope{
			Name:        unitName,
			Description: description(&e.m),
			Slice:       unit.Slice,
			Leader:      e.leader,
			UID:         e.m.UID,
			Properties:  req.Scope,
		})
		if err != nil {
			_ = r.files.remove(&e.m)
			r.forget(e)
			return Machine{}, fmt.Errorf("create scope %q: %w", unitName, err)
		}
	}
	m, err := r.publish(e)
	if err != nil {
		return Machine{}, err
	}
	if !create {
		r.journalStart(&e.m)
		return m, nil
	}
	settled := make(chan error, 1)
	r.wg.Go(func() { settled <- r.settle(e, job) })
	select {
	case err := <-settled:
		if err != nil {
			return Machine{}, err
		}
		return r.Get(e.m.Name)
	case <-ctx.Done():
		// The caller has left. The machine is made all the same.
		return Machine{}, ctx.Err()
	}
}

func description(m *Machine) string {
	if m.Class == ClassVM {
		return "Virtual Machine " + m.Name
	}
	return "Container " + m.Name
}

func newEntry(req CreateRequest, unitName, subgroup string) (*entry, error) {
	leader, err := req.Leader.Dup()
	if err != nil {
		return nil, err
	}
	e := &entry{leader: leader, gone: make(chan struct{}), check: make(chan struct{}, 1)}
	if req.Supervisor != nil && req.Supervisor.PID() != req.Leader.PID() {
		if e.supervisor, err = req.Supervisor.Dup(); err != nil {
			e.close()
			return nil, err
		}
	}
	cid := req.VSockCID
	if cid == 0 {
		cid = VSockCIDAny
	}
	netifs := slices.Clone(req.NetIfs)
	slices.Sort(netifs)
	realtime, monotonic := now()
	e.m = Machine{
		// Strings are cloned: they may be slices of a message of megabytes.
		Name:           strings.Clone(req.Name),
		ID:             req.ID,
		Service:        strings.Clone(req.Service),
		Class:          Class(strings.Clone(string(req.Class))),
		RootDirectory:  strings.Clone(req.RootDirectory),
		Unit:           unitName,
		Subgroup:       subgroup,
		Leader:         Process{PID: leader.PID(), FDID: leader.FDID()},
		Realtime:       realtime,
		Monotonic:      monotonic,
		NetIfs:         slices.Compact(netifs),
		UID:            req.UID,
		VSockCID:       cid,
		SSHAddress:     strings.Clone(req.SSHAddress),
		SSHPrivateKey:  strings.Clone(req.SSHPrivateKey),
		ControlAddress: strings.Clone(req.ControlAddress),
	}
	if e.supervisor != nil {
		e.m.Supervisor = Process{PID: e.supervisor.PID(), FDID: e.supervisor.FDID()}
	}
	return e, nil
}

// reserve takes the name and the leader; nobody sees the machine yet.
func (r *Registry) reserve(e *entry) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.New("machined is shutting down")
	}
	if err := r.nameFree(e.m.Name); err != nil {
		return err
	}
	if other, ok := r.byLeader[e.m.Leader.PID]; ok {
		return fmt.Errorf("process %d is the leader of machine %q already: %w", e.m.Leader.PID, other.m.Name, unix.EEXIST)
	}
	if len(r.machines) >= r.cfg.MaxMachines {
		return &detailError{kind: ErrTooMany, text: fmt.Sprintf("Too many machines: there are %d", len(r.machines))}
	}
	if uid := e.m.UID; uid != 0 && r.byUser[uid] >= r.cfg.MaxPerUser {
		return &detailError{kind: ErrTooMany, text: fmt.Sprintf("Too many machines of user %d: there are %d", uid, r.byUser[uid])}
	}
	r.index(e)
	return nil
}

// index needs mu.
func (r *Registry) index(e *entry) {
	r.machines[e.m.Name] = e
	if e.leader != nil {
		r.byLeader[e.m.Leader.PID] = e
	}
	if e.m.UID != 0 {
		r.byUser[e.m.UID]++
	}
	if e.m.Unit != "" {
		r.byUnit[e.m.Unit] = append(r.byUnit[e.m.Unit], e)
	}
}

// unindex needs mu.
func (r *Registry) unindex(e *entry) {
	if e.visible {
		r.changes.Add(1)
	}
	if r.machines[e.m.Name] == e {
		delete(r.machines, e.m.Name)
	}
	if r.byLeader[e.m.Leader.PID] == e {
		delete(r.byLeader, e.m.Leader.PID)
	}
	if uid := e.m.UID; uid != 0 {
		if r.byUser[uid]--; r.byUser[uid] <= 0 {
			delete(r.byUser, uid)
		}
	}
	if left := slices.DeleteFunc(r.byUnit[e.m.Unit], func(o *entry) bool { return o == e }); len(left) > 0 {
		r.byUnit[e.m.Unit] = left
	} else {
		delete(r.byUnit, e.m.Unit)
	}
}

// forget undoes reserve.
func (r *Registry) forget(e *entry) {
	r.mu.Lock()
	e.removed = true
	r.unindex(e)
	r.mu.Unlock()
	e.close()
}

// publish makes a reserved machine visible, tells the listeners and begins to
// watch it.
func (r *Registry) publish(e *entry) (Machine, error) {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return Machine{}, errors.New("machined is shutting down")
	}
	e.visible = true
	r.changes.Add(1)
	m := r.snapshot(e)
	r.events = append(r.events, event{machine: m, added: true})
	r.wg.Go(func() { r.lookAfter(e) })
	r.mu.Unlock()
	r.emit()
	return m, nil
}

// settle waits for the scope of a new machine.
func (r *Registry) settle(e *entry, job unit.Job) error {
	var err error
	select {
	case err = <-job.Done:
	case <-e.gone: // unregistered meanwhile
		return &detailError{kind: ErrNoSuchMachine, text: fmt.Sprintf("Machine '%s' went away while its scope was being made", e.m.Name)}
	case <-r.ctx.Done():
		return errors.New("machined is shutting down")
	}
	r.mu.Lock()
	e.jobPending = false
	r.mu.Unlock()
	if err != nil {
		r.finalize(e)
		return err
	}
	r.journalStart(&e.m)
	e.poke()
	return nil
}

func (r *Registry) journalStart(m *Machine) {
	r.journal(Entry{Message: "New machine " + m.Name + ".", MessageID: messageMachineStart, Name: m.Name, Leader: m.Leader.PID})
}
