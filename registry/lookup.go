package registry

import (
	"fmt"
	"strings"

	"machined/internal/sys"
)

// maxAncestors bounds the walk from a process up to PID 1.
const maxAncestors = 512

// ByPID returns the machine that a process belongs to: as its leader, by the
// cgroup that it is in, or through the nearest ancestor of which one of these
// is true. It wraps ErrNoMachineForPID.
func (r *Registry) ByPID(pid int) (Machine, error) {
	for p, n := pid, 0; p > 1 && n < maxAncestors; n++ {
		if m, ok := r.byProcess(p); ok {
			return m, nil
		}
		parent, err := sys.ParentOf(p)
		if err != nil || parent == p {
			break
		}
		p = parent
	}
	return Machine{}, &detailError{kind: ErrNoMachineForPID, text: fmt.Sprintf("PID %d does not belong to any known machine", pid)}
}

// ByMember is ByPID without the ancestors, so that its cost is bounded by
// little. What it does not find, ByPID may.
func (r *Registry) ByMember(pid int) (Machine, bool) {
	if pid <= 1 {
		return Machine{}, false
	}
	return r.byProcess(pid)
}

func (r *Registry) byProcess(pid int) (Machine, bool) {
	r.mu.Lock()
	e, ok := r.byLeader[pid]
	if ok && e.visible {
		leader := e.leader
		m := r.snapshot(e)
		r.mu.Unlock()
		// A leader that has ended may have left its number to another process.
		if leader.Alive() {
			return m, true
		}
	} else {
		r.mu.Unlock()
	}
	name, subgroup, err := r.unitOf(pid)
	if err != nil || name == "" {
		return Machine{}, false
	}
	return r.ByUnit(name, subgroup)
}

// ByUnit returns the machine that lives in a unit, or in a part of it that
// holds the cgroup subgroup.
func (r *Registry) ByUnit(name, subgroup string) (Machine, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.byUnit[name] {
		if !e.visible {
			continue
		}
		if ownsUnit(&e.m) {
			return r.snapshot(e), true
		}
		if sub := e.m.Subgroup; sub != "" && !e.m.Shared && (subgroup == sub || strings.HasPrefix(subgroup, sub+"/")) {
			return r.snapshot(e), true
		}
	}
	return Machine{}, false
}
