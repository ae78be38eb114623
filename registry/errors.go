package registry

import (
	"errors"

	"machined/internal/unit"
)

// What can be wrong with a request. Errors of this package wrap one of these
// with the detail; the bus edges turn them into their own error names.
var (
	ErrNoSuchMachine   = errors.New("no such machine")
	ErrMachineExists   = errors.New("machine exists")
	ErrNoMachineForPID = errors.New("process belongs to no machine")
	ErrNotSupported    = errors.New("not supported")
	ErrInvalid         = errors.New("invalid argument")
	ErrAccess          = errors.New("access denied")
	// ErrTooMany is refused because of a limit on what one user, or all
	// together, may register.
	ErrTooMany = errors.New("limit exceeded")
)

// JobError says that the service manager gave up on a scope or service.
type JobError = unit.JobError

// detailError is a sentinel with a text of its own, for people.
type detailError struct {
	kind error
	text string
}

func (e *detailError) Error() string { return e.text }
func (e *detailError) Unwrap() error { return e.kind }
