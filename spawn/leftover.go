package spawn

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"golang.org/x/sys/unix"
)

// A directory that lives as long as one run of a machine has a lock on it for as
// long, and a name that only this program gives. One without its lock belongs to
// a supervisor that was killed.
var runName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(\.#machine\.|\.#template\.|\.#nspawn-work-|nspawn-temp-)[^/]*\+[0-9a-f]{16}$`)
})

// runDir makes such a directory in parent, and removes what killed runs have left
// there. The lock goes with the process, the directory with m.undo.
func (m *machine) runDir(parent, prefix string, mode os.FileMode) (string, error) {
	removeLeftovers(parent)
	for range 16 {
		dir := filepath.Join(parent, prefix+"+"+randomHex(8))
		if err := os.Mkdir(dir, mode); err != nil {
			return "", err
		}
		lock, err := lockDir(dir)
		if errors.Is(err, errGone) {
			continue // taken for a leftover before it was locked
		}
		if err != nil {
			_ = os.Remove(dir)
			return "", err
		}
		m.owe(chore{Kind: choreRemoveTree, Path: dir}, lock)
		return dir, os.Chmod(dir, mode)
	}
	return "", fmt.Errorf("make directory in %q: %w", parent, unix.EBUSY)
}

var errGone = errors.New("the directory is locked or gone")

// lockDir locks a directory that is still there afterwards.
func lockDir(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, errGone)
	}
	f := os.NewFile(uintptr(fd), dir)
	var held, named unix.Stat_t
	if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil || unix.Fstat(fd, &held) != nil ||
		unix.Lstat(dir, &named) != nil || held.Ino != named.Ino || held.Dev != named.Dev {
		_ = f.Close()
		return nil, errGone
	}
	return f, nil
}

// removeLeftovers removes the directories of killed runs from parent.
func removeLeftovers(parent string) {
	d, err := os.Open(parent)
	if err != nil {
		return
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, name := range names {
		if !runName().MatchString(name) {
			continue
		}
		dir := filepath.Join(parent, name)
		var st unix.Stat_t
		if unix.Lstat(dir, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		lock, err := lockDir(dir)
		if err != nil {
			continue
		}
		_ = os.RemoveAll(dir)
		_ = lock.Close()
	}
}
