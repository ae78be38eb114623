package settings

import (
	"os"
	"path/filepath"
)

// Dirs are the places of trusted files, first hit wins.
var trustedDirs = []string{"/etc/systemd/nspawn", "/run/systemd/nspawn"}

// Find returns the .nspawn file for a machine (its name before a random suffix):
// the administrator's, which is trusted, or one that came beside the image, which
// is not. ImagePath is the tree or image file, "" for none; for a tree the file
// lies beside it, not in it.
func Find(machine, imagePath string) (path string, trusted, ok bool) {
	return FindIn(trustedDirs, machine, imagePath)
}

// FindIn is Find with other places for trusted files.
func FindIn(dirs []string, machine, imagePath string) (path string, trusted, ok bool) {
	if machine == "" || filepath.Base(machine) != machine || machine == ".." || machine == "." {
		return "", false, false
	}
	name := machine + ".nspawn"
	for _, d := range dirs {
		if p := filepath.Join(d, name); exists(p) {
			return p, true, true
		}
	}
	if imagePath == "" || filepath.Clean(imagePath) == "/" {
		return "", false, false
	}
	if p := filepath.Join(filepath.Dir(filepath.Clean(imagePath)), name); exists(p) {
		return p, false, true
	}
	return "", false, false
}

// exists counts everything but "not there": a file that cannot be read must be an
// error for who reads it, and not a machine without its settings.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil || !os.IsNotExist(err)
}
