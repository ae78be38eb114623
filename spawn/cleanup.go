package spawn

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// CleanUp removes what a run of the machine that was killed has left in /run.
func CleanUp(machine string) error {
	for _, dir := range []string{PropagateDir, UnixExportDir} {
		p := filepath.Join(dir, machine)
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil &&
			!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "unmount", Path: p, Err: err}
		}
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
