package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
	"machined/internal/unit"
)

// recheckAfter is how long a machine waits before it is looked at again whose unit
// the backend could not tell us about, or has no leader any more.
const recheckAfter = time.Second

// poke makes the watcher of e look at its facts.
func (e *entry) poke() {
	select {
	case e.check <- struct{}{}:
	default: // one look is due already
	}
}

// watch looks after one machine until it is gone.
func (r *Registry) watch(e *entry) {
	var leaderExit, supervisorExit <-chan struct{}
	if e.leader != nil {
		leaderExit = e.leader.Exited()
	}
	if e.supervisor != nil {
		supervisorExit = e.supervisor.Exited()
	}
	var again <-chan time.Time
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-e.gone:
			return
		case <-leaderExit:
			leaderExit = nil
		case <-supervisorExit:
			supervisorExit = nil
		case <-e.check:
		case <-again:
		}
		again = nil
		over, err := r.over(r.ctx, e)
		switch {
		case err != nil:
			r.cfg.Log.WithError(err).WithField("machine", e.m.Name).Debug("Unit state is unknown.")
			again = time.After(recheckAfter)
		case over:
			r.finalize(e)
			return
		case r.leaderless(e):
			// Others of its processes may go on. But the service manager misses the
			// end of the last one now and then, and would keep the scope for ever.
			if err := r.cfg.Backend.Release(r.ctx, e.m.Unit); err != nil {
				r.cfg.Log.WithError(err).WithField("unit", e.m.Unit).Debug("Unit is not released.")
			}
			again = time.After(recheckAfter)
		}
	}
}

// leaderless tells whether a machine's leader is dead, but a scope that was made
// for the machine is not.
func (r *Registry) leaderless(e *entry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	dead := e.leader == nil || !e.leader.Alive() // nil: it was dead when the state was loaded
	return dead && e.m.Leader.PID > 0 && !e.jobPending && ownsUnit(&e.m) && e.m.Unit == unit.ScopeName(e.m.Name)
}

// endPatience is how long the end of a machine that has begun to end is waited for.
const endPatience = 2 * time.Second

// AwaitEnd waits a moment for the end of a machine called name whose leader or
// supervisor is dead already, so that the same machine can be started again at
// once. Where there is none it returns at once.
func (r *Registry) AwaitEnd(ctx context.Context, name string) {
	r.mu.Lock()
	e := r.machines[name]
	r.mu.Unlock()
	if e == nil || !r.leaderless(e) && (e.supervisor == nil || e.supervisor.Alive()) {
		return
	}
	timeout := time.NewTimer(endPatience)
	defer timeout.Stop()
	select {
	case <-e.gone:
	case <-timeout.C:
	case <-ctx.Done():
	}
}

// over collects the facts about a machine and reports whether it has ended.
func (r *Registry) over(ctx context.Context, e *entry) (bool, error) {
	r.mu.Lock()
	f := facts{
		leaderKnown: e.m.Leader.PID > 0,
		jobPending:  e.jobPending,
		stopping:    e.stopping,
		ownsUnit:    ownsUnit(&e.m),
	}
	r.mu.Unlock()
	f.leaderAlive = e.leader != nil && e.leader.Alive()
	if f.leaderKnown && !f.leaderAlive && !f.jobPending && f.ownsUnit {
		active, err := r.cfg.Backend.Active(ctx, e.m.Unit)
		if err != nil {
			return false, err
		}
		f.unitActive = active
	}
	return collectable(f), nil
}

// finalize removes a machine: its files, then its entry, then the listeners
// hear of it. Only the first caller does anything.
func (r *Registry) finalize(e *entry) {
	r.mu.Lock()
	if e.removed {
		r.mu.Unlock()
		return
	}
	e.removed, e.stopping = true, true
	r.mu.Unlock()

	if err := r.files.remove(&e.m); err != nil {
		r.cfg.Log.WithError(err).WithField("machine", e.m.Name).Warn("State file stays.")
	}
	r.drop(e)

	r.mu.Lock()
	m := r.snapshot(e)
	started := !e.jobPending
	r.unindex(e)
	if e.visible {
		r.events = append(r.events, event{machine: m})
	}
	r.mu.Unlock()
	close(e.gone)
	r.emit()
	if started {
		r.journal(Entry{Message: "Machine " + m.Name + " terminated.", MessageID: messageMachineStop, Name: m.Name, Leader: m.Leader.PID})
	}
	if e.ownScope {
		ctx, cancel := context.WithTimeout(r.ctx, 10*time.Second)
		defer cancel()
		if err := r.cfg.Backend.Release(ctx, m.Unit); err != nil && r.ctx.Err() == nil {
			r.cfg.Log.WithError(err).WithField("unit", m.Unit).Debug("Unit is not released.")
		}
	}
	e.close()
}

// unitEvent is what the backend calls when a unit may have changed.
func (r *Registry) unitEvent(ev unit.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ev.Unit == "" {
		for _, e := range r.machines {
			e.poke()
		}
		return
	}
	for _, e := range r.byUnit[ev.Unit] {
		e.poke()
	}
}

// Unregister forgets a machine. Its processes stay. For .host there is nothing
// to do: it is known always.
func (r *Registry) Unregister(_ context.Context, name string) error {
	e, err := r.find(name)
	if err != nil {
		return err
	}
	if e != nil {
		r.finalize(e)
	}
	return nil
}

// find returns nil without an error for .host.
func (r *Registry) find(name string) (*entry, error) {
	if name == HostName && !r.cfg.User {
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lookup(name)
}

// Terminate begins to end a machine, cleanly where its unit or its supervisor
// knows how. It does not wait.
func (r *Registry) Terminate(ctx context.Context, name string) error {
	e, err := r.find(name)
	if err != nil {
		return err
	}
	if e == nil {
		return &detailError{kind: ErrNotSupported, text: "The host can't be terminated"}
	}
	r.mu.Lock()
	before := e.stopping
	e.stopping = true
	r.mu.Unlock()
	switch {
	case ownsUnit(&e.m):
		err = r.cfg.Backend.Stop(ctx, e.m.Unit)
	case e.supervisor != nil && e.supervisor.Alive():
		err = signal(e.supervisor, unix.SIGTERM)
	case (e.m.Unit == "" || e.m.Shared) && e.leader != nil:
		err = signal(e.leader, unix.SIGTERM)
	default:
		err = &detailError{kind: ErrNotSupported, text: fmt.Sprintf("Machine '%s' shares unit '%s' with others and has no supervisor that could end it", name, e.m.Unit)}
	}
	if err != nil {
		r.mu.Lock()
		e.stopping = before || e.removed
		r.mu.Unlock()
		return err
	}
	e.poke()
	return nil
}

// Kill sends a signal to a machine: to its "leader", its "supervisor", or to
// "all" of its processes, which is also what "" means.
func (r *Registry) Kill(ctx context.Context, name, whom string, sig unix.Signal) error {
	if sig <= 0 || sig > 64 {
		return invalid("Invalid signal %d", int(sig))
	}
	switch whom {
	case "", "all", "leader", "supervisor":
	default:
		return invalid("Invalid kill parameter %s: it is \"leader\", \"supervisor\" or \"all\"", clip(whom))
	}
	e, err := r.find(name)
	if err != nil {
		return err
	}
	if e == nil {
		return &detailError{kind: ErrNotSupported, text: "The host can't be killed"}
	}
	switch {
	case whom == "leader", (e.m.Unit == "" || e.m.Shared) && whom != "supervisor":
		return signal(e.leader, sig)
	case whom == "supervisor":
		if e.supervisor == nil {
			return &detailError{kind: ErrNotSupported, text: fmt.Sprintf("Machine '%s' has no supervisor that is known", name)}
		}
		return signal(e.supervisor, sig)
	}
	return r.cfg.Backend.Kill(ctx, e.m.Unit, e.m.Subgroup, sig)
}

func signal(p *sys.Process, sig unix.Signal) error {
	if p == nil {
		return fmt.Errorf("signal leader: %w", unix.ESRCH)
	}
	err := p.Signal(sig)
	if errors.Is(err, os.ErrClosed) {
		err = fmt.Errorf("signal process %d: %w", p.PID(), unix.ESRCH)
	}
	return err
}
