package spawn

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"machined/spawn/stage"
)

// CleanUp removes what a run of the machine that was killed has left in /run, and
// gives back the interfaces that it had.
func CleanUp(machine string) error {
	if err := GiveBack(machine); err != nil {
		return err
	}
	export := filepath.Join(UnixExportDir, machine)
	if err := stage.DropStale(export); errors.Is(err, stage.ErrExported) {
		return fmt.Errorf("Machine '%s' is running.", machine)
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	propagate := filepath.Join(PropagateDir, machine)
	if err := stage.Unmount(propagate); err != nil {
		return err
	}
	for _, p := range []string{propagate, export} {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
