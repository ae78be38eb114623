package registry

import (
	"os"

	"machined/internal/sys"
)

// Store keeps descriptors while machined is away (internal/fdstore). What is
// kept under the name of a machine are the pidfds of its leader and supervisor:
// with them no process that has got a number anew is taken for the machine.
type Store interface {
	Keep(name string, fds ...int) error
	Take(name string) []*os.File
	Drop(name string) error
	DropRest() error
}

// takeKept returns the processes that were kept for a machine and still exist,
// which the caller closes, and whether any was kept.
func (r *Registry) takeKept(name string) (kept []*sys.Process, found bool) {
	if r.cfg.Store == nil {
		return nil, false
	}
	files := r.cfg.Store.Take(name)
	for _, f := range files {
		if proc, err := sys.FromPIDFD(int(f.Fd())); err == nil {
			kept = append(kept, proc)
		}
		_ = f.Close()
	}
	return kept, len(files) > 0
}

// lookAfter watches a machine, and has its processes kept for as long.
func (r *Registry) lookAfter(e *entry) {
	r.keep(e)
	r.watch(e)
}

func (r *Registry) keep(e *entry) {
	if r.cfg.Store == nil {
		return
	}
	e.storing.Lock()
	defer e.storing.Unlock()
	if e.stored || e.dropped {
		return
	}
	var fds []int
	for _, proc := range []*sys.Process{e.leader, e.supervisor} {
		if proc == nil {
			continue
		}
		dup, err := proc.Dup() // the entry may be closed meanwhile
		if err != nil {
			continue
		}
		defer dup.Close()
		fds = append(fds, dup.FD())
	}
	e.stored = true
	if err := r.cfg.Store.Keep(e.m.Name, fds...); err != nil {
		r.cfg.Log.WithError(err).WithField("machine", e.m.Name).Debug("Processes are not kept by the service manager.")
	}
}

// drop has the processes of a machine forgotten. It is called before the name
// is free for the next one.
func (r *Registry) drop(e *entry) {
	if r.cfg.Store == nil {
		return
	}
	e.storing.Lock()
	defer e.storing.Unlock()
	e.dropped = true
	if !e.stored {
		return
	}
	if err := r.cfg.Store.Drop(e.m.Name); err != nil {
		r.cfg.Log.WithError(err).WithField("machine", e.m.Name).Debug("Processes stay with the service manager.")
	}
}

// discard removes what is left of a machine that is not taken up.
func (r *Registry) discard(e *entry) {
	_ = r.files.remove(&e.m)
	r.drop(e)
	e.close()
}
