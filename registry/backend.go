package registry

import (
	"context"

	"golang.org/x/sys/unix"

	"machined/internal/unit"
)

// unitBackend is what the registry asks of PID 1, or of the cgroup tree on a
// host without it. It is safe for concurrent use.
type unitBackend interface {
	// StartScope begins to make a scope around a running process. An error
	// means that there is no scope and will be none.
	StartScope(ctx context.Context, s unit.Scope) (unit.Job, error)
	// Stop begins to end a unit; it does not wait. A unit that is gone already
	// is no error.
	Stop(ctx context.Context, name string) error
	// Kill signals every process of the unit, or of one cgroup below it.
	Kill(ctx context.Context, name, subgroup string, sig unix.Signal) error
	// Active reports whether the unit is neither inactive nor failed.
	Active(ctx context.Context, name string) (bool, error)
	// Release says that the registry has no more use for a scope that StartScope
	// made, once no process is left in it: it may have to be stopped.
	Release(ctx context.Context, name string) error
}

// spawnBackend starts the spawner for an image.
type spawnBackend interface {
	// StartMachine returns the unit when its start job has ended well.
	StartMachine(ctx context.Context, image string, properties []unit.Property) (string, error)
	Enable(ctx context.Context, images []string, on bool) ([]unit.Change, error)
	// Console returns the last lines (at most max bytes) that the machine's
	// spawner wrote, where no journal keeps them; ErrNotSupported elsewhere.
	Console(unitName string, max int) ([]byte, error)
}

// Backend is everything below the registry: both halves, and the events that
// say when to look again. internal/cgroup and dbus/systemd1 implement it.
type Backend interface {
	unitBackend
	spawnBackend
	// Watch makes the backend call f for each event, one at a time, until ctx
	// ends; it returns when watching has begun.
	Watch(ctx context.Context, f func(unit.Event)) error
	// CgroupPrefix is where the backend's tree of units starts.
	CgroupPrefix() string
	// CgroupOwner is who owns a cgroup, named as in proc_pid_cgroup(5).
	CgroupOwner(path string) (uint32, error)
}

// ScopeProperty is one property that a caller wants its scope to have. Value is
// opaque here: a D-Bus variant for the backend over PID 1.
type ScopeProperty = unit.Property

// ScopeProperties are appended to our own, so they override them.
type ScopeProperties []ScopeProperty

// UnitChange is one change that Enable made to the unit files.
type UnitChange = unit.Change
