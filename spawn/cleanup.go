package spawn

import (
	"errors"
	"os"
	"path/filepath"

	"machined/spawn/stage"
)

// CleanUp removes what a run of the machine that was killed has left in /run.
func CleanUp(machine string) error {
	for _, dir := range []string{PropagateDir, UnixExportDir} {
		p := filepath.Join(dir, machine)
		if err := stage.Unmount(p); err != nil {
			return err
		}
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
