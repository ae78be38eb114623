// Package unit holds what the registry and its unit backends share about the
// units of a service manager: the values that travel between them, and the
// naming rules of systemd.unit(5) and of its cgroup tree. It does no I/O and
// knows neither D-Bus nor cgroup files.
package unit

import (
	"fmt"

	"machined/internal/sys"
)

// Property is one property of a transient unit. Value is opaque: the backend
// over PID 1 gets a D-Bus variant, the direct one ignores it.
type Property struct {
	Name  string
	Value any
}

// Scope describes a scope unit to be made around a process that runs already.
type Scope struct {
	Name        string // with suffix
	Description string
	Slice       string
	Leader      *sys.Process // stays the caller's
	UID         uint32       // owner of the machine; 0: no User= property
	Properties  []Property   // appended verbatim, so that they override
}

// Job is work that the backend does in the background.
type Job struct {
	ID string
	// Done delivers the outcome once and is then closed; nil means success, a
	// *JobError that the service manager gave up.
	Done <-chan error
}

// Finished returns a job that has ended already.
func Finished(err error) Job {
	done := make(chan error, 1)
	done <- err
	close(done)
	return Job{Done: done}
}

// Event says that a unit may have changed its state.
type Event struct {
	Unit string // empty: any of them, look at all
}

// Change is one change to the unit files on disk, as EnableUnitFiles reports it.
type Change struct {
	Type   string // "symlink" or "unlink"
	File   string
	Source string // target of the symlink
}

// JobError says that a job of the service manager did not end with "done".
type JobError struct {
	Unit   string
	Result string // "failed", "timeout", "dependency", "canceled", "skipped"
	Detail string // why, for people; may be empty
}

func (e *JobError) Error() string {
	why := e.Detail
	if why == "" {
		switch e.Result {
		case "timeout":
			why = "a timeout was exceeded"
		case "dependency":
			return fmt.Sprintf("A dependency job for %s failed. See 'journalctl -xe' for details.", e.Unit)
		case "canceled":
			return fmt.Sprintf("Job for %s canceled.", e.Unit)
		case "skipped":
			return fmt.Sprintf("%s was skipped because of an unmet condition check.", e.Unit)
		default:
			why = "the control process exited with error code"
		}
	}
	return fmt.Sprintf("Job for %s failed because %s.\nSee \"systemctl status %s\" and \"journalctl -xeu %s\" for details.",
		e.Unit, why, Quote(e.Unit), Quote(e.Unit))
}
