package registry

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
	"machined/internal/unit"
)

// Load reads the state files that an earlier machined, ours or systemd's, left
// behind, drops the machines that have ended meanwhile, and begins to watch the
// others. It is called once, before anybody can reach the registry.
func (r *Registry) Load(ctx context.Context) error {
	if err := r.files.prepare(); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	if err := r.cfg.Backend.Watch(r.ctx, r.unitEvent); err != nil {
		return fmt.Errorf("watch units: %w", err)
	}
	names, err := r.files.names()
	if err != nil {
		return fmt.Errorf("read state directory: %w", err)
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		r.restore(ctx, name)
	}
	if r.cfg.Store != nil {
		if err := r.cfg.Store.DropRest(); err != nil {
			r.cfg.Log.WithError(err).Warn("Descriptors of machines that have ended stay with the service manager.")
		}
	}
	return nil
}

// restore takes up one machine, or removes what is left of it.
func (r *Registry) restore(ctx context.Context, name string) {
	log := r.cfg.Log.WithField("machine", name)
	m, err := r.files.load(name)
	if err != nil {
		log.WithError(err).Warn("State file is unusable and is removed.")
		_ = r.files.remove(&Machine{Name: name})
		return
	}
	if m.Class == "" || m.Leader.PID == 0 {
		log.Warn("State file names no class or no leader and is removed.")
		_ = r.files.remove(&m)
		return
	}
	m.Subgroup = lastingSubgroup(m.Subgroup)
	e := &entry{m: m, gone: make(chan struct{}), check: make(chan struct{}, 1)}
	kept, stored := r.takeKept(name)
	e.stored = stored
	e.leader = r.reopen(&m, &e.m.Leader, kept)
	e.supervisor = r.reopen(&m, &e.m.Supervisor, kept)
	e.m.Shared = r.shared(m.Leader.PID, m.Unit, m.UID)
	if e.supervisor == nil {
		e.m.Supervisor = Process{}
	}
	for _, proc := range kept {
		proc.Close()
	}
	if r.unborn(ctx, e) {
		log.Info("Machine has no scope and is removed: machined was killed while it was being made.")
		r.discard(e)
		return
	}
	if over, err := r.over(ctx, e); over {
		log.Info("Machine has ended while machined was away.")
		r.discard(e)
		return
	} else if err != nil {
		log.WithError(err).Warn("Unit state is unknown; the machine is kept.")
	}
	r.mu.Lock()
	e.visible = true
	r.changes.Add(1)
	r.index(e)
	r.wg.Go(func() { r.lookAfter(e) })
	r.mu.Unlock()
	// An older daemon's file lacks what we know now, and may lack the link.
	if err := r.files.save(&e.m); err != nil {
		log.WithError(err).Warn("State file is not refreshed.")
	}
	e.poke()
}

// unborn reports whether the scope of a machine was never made: a state file is
// written before its scope is asked for. PID 1 has handled what an earlier
// daemon asked of it before it answers us.
func (r *Registry) unborn(ctx context.Context, e *entry) bool {
	if e.leader == nil || e.m.Unit != unit.ScopeName(e.m.Name) {
		return false
	}
	if name, _, err := r.unitOf(e.leader.PID()); err != nil || name == e.m.Unit {
		return false
	}
	active, err := r.cfg.Backend.Active(ctx, e.m.Unit)
	return err == nil && !active
}

// reopen pins a process that a state file names, if it is still the same one.
// It fills in the pidfd's inode, which files of old daemons do not have. What
// was kept for the machine is beyond doubt, whatever the numbers mean now.
func (r *Registry) reopen(m *Machine, p *Process, kept []*sys.Process) *sys.Process {
	if p.PID <= 1 {
		return nil
	}
	for _, proc := range kept {
		if proc.PID() != p.PID || !proc.Alive() {
			continue
		}
		if dup, err := proc.Dup(); err == nil {
			p.FDID = proc.FDID()
			return dup
		}
	}
	proc, err := sys.OpenProcess(p.PID)
	if err != nil {
		return nil
	}
	if !r.same(proc, m, p) || !proc.Alive() {
		proc.Close()
		return nil
	}
	p.FDID = proc.FDID()
	return proc
}

// same reports whether proc is the process that was registered as p. The inode
// of its pidfd proves it; a file without one has only the time of registration,
// which no process that is younger can have seen, and the unit of the leader.
func (r *Registry) same(proc *sys.Process, m *Machine, p *Process) bool {
	if p.FDID != 0 && proc.FDID() != 0 {
		return p.FDID == proc.FDID()
	}
	if m.Monotonic > 0 && startedAt(proc) > bootTimeOf(m.Monotonic)+time.Second {
		return false
	}
	if p == &m.Leader || p.PID == m.Leader.PID {
		name, _, err := r.unitOf(p.PID)
		return err == nil && (m.Unit == "" || name == m.Unit)
	}
	return true
}

// clockTick is what proc_pid_stat(5) counts start times in: USER_HZ, which is
// 100 on every architecture that Go runs Linux programs on.
const clockTick = time.Second / 100

// startedAt is when proc started, on CLOCK_BOOTTIME.
func startedAt(proc *sys.Process) time.Duration {
	return time.Duration(proc.StartTime()) * clockTick
}

// bootTimeOf turns a time of CLOCK_MONOTONIC into one of CLOCK_BOOTTIME. If the
// host has slept since, the result is too late by that time, never too early.
func bootTimeOf(mono time.Duration) time.Duration {
	var m, b unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &m) != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &b) != nil {
		return mono
	}
	return mono + time.Duration(b.Nano()-m.Nano())
}
