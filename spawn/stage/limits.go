package stage

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// raiseLimits lifts the hard limits that are to be higher, while we may, and
// works out what the payload's limits are. They are set at the very end
// (setLimits): this program needs descriptors and memory that the payload may
// not have.
func (in *inner) raiseLimits() error {
	for i := range in.plan.Rlimits {
		l := &in.plan.Rlimits[i]
		var now unix.Rlimit
		if err := unix.Prlimit(0, l.Resource, nil, &now); err != nil {
			return os.NewSyscallError("prlimit", err)
		}
		if l.Hard <= now.Max {
			continue
		}
		err := unix.Prlimit(0, l.Resource, &unix.Rlimit{Cur: now.Cur, Max: l.Hard}, nil)
		if errors.Is(err, unix.EPERM) {
			l.Hard = now.Max
			l.Soft = min(l.Soft, l.Hard)
			err = nil
		}
		if err != nil {
			return fmt.Errorf("set resource limit %d: %w", l.Resource, err)
		}
	}
	if in.plan.EarlyLimits {
		err := setLimits(in.plan.Rlimits)
		in.plan.Rlimits = nil
		return err
	}
	return nil
}

// setLimits gives this process the payload's limits. Only the execution may
// follow.
func setLimits(limits []Rlimit) error {
	for _, l := range limits {
		if err := unix.Prlimit(0, l.Resource, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}, nil); err != nil {
			return fmt.Errorf("set resource limit %d: %w", l.Resource, err)
		}
	}
	return nil
}
