package registry

import (
	"context"

	"golang.org/x/sys/unix"

	"machined/internal/unit"
)

// NoUnits is the backend of a user's instance where no service manager of that
// user answers. Machines can be registered, and live and end with their leaders;
// what needs a unit is not supported.
type NoUnits struct{}

var errNoUnits = &detailError{kind: ErrNotSupported, text: "There is no service manager that could do this"}

// StartScope is not supported.
func (NoUnits) StartScope(context.Context, unit.Scope) (unit.Job, error) {
	return unit.Job{}, errNoUnits
}

// Stop is not supported.
func (NoUnits) Stop(context.Context, string) error { return errNoUnits }

// Kill is not supported; machines without a unit are signalled by the registry.
func (NoUnits) Kill(context.Context, string, string, unix.Signal) error { return errNoUnits }

// Active is false: there are no units.
func (NoUnits) Active(context.Context, string) (bool, error) { return false, nil }

// Release has nothing to do.
func (NoUnits) Release(context.Context, string) error { return nil }

// StartMachine is not supported.
func (NoUnits) StartMachine(context.Context, string, []unit.Property) (string, error) {
	return "", errNoUnits
}

// Enable is not supported.
func (NoUnits) Enable(context.Context, []string, bool) ([]unit.Change, error) {
	return nil, errNoUnits
}

// Console is not supported.
func (NoUnits) Console(string, int) ([]byte, error) { return nil, errNoUnits }

// Watch never has an event.
func (NoUnits) Watch(context.Context, func(unit.Event)) error { return nil }

// CgroupPrefix is a path that no cgroup is below, so that no process is in a
// unit of ours.
func (NoUnits) CgroupPrefix() string { return "/.no-units" }

// CgroupOwner knows of no cgroup.
func (NoUnits) CgroupOwner(string) (uint32, error) { return 0, errNoUnits }
