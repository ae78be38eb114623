package image

import (
	"os"
	"path/filepath"
)

// UserConfig is the configuration of a user's own store of images of a class:
// below the user's directories, and without the host (file-hierarchy(7),
// "Home Directory"). What $XDG_RUNTIME_DIR or the home directory would hold is
// left out where it is not known; without a home there is no pool, and the
// error says so.
func UserConfig(class Class) (Config, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return Config{}, err
	}
	under := func(variable, fallback string, parts ...string) string {
		dir := os.Getenv(variable)
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(home, fallback)
		}
		return filepath.Join(append([]string{dir}, parts...)...)
	}
	name := filepath.Base(PoolDir(class)) // as system-wide
	c := Config{Class: class, NoHost: true, PoolDir: under("XDG_STATE_HOME", ".local/state", name)}
	c.NspawnDirs = []string{under("XDG_CONFIG_HOME", ".config", "systemd/nspawn")}
	if run := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(run) {
		c.SearchPath = append(c.SearchPath, filepath.Join(run, name))
		c.NspawnDirs = append(c.NspawnDirs, filepath.Join(run, "systemd/nspawn"))
		c.LockDir = filepath.Join(run, "systemd/nspawn/locks")
	}
	c.SearchPath = append(c.SearchPath, c.PoolDir, filepath.Join(home, ".local/lib", name))
	return c, nil
}
