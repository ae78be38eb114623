package image

import (
	"os"

	"github.com/sirupsen/logrus"
)

// Config says where a Store looks and works. The zero value of a field means
// the system's own place.
type Config struct {
	Class Class
	// SearchPath are the directories to look in; the first match of a name wins.
	SearchPath []string
	// PoolDir is where new images are made.
	PoolDir string
	// NspawnDirs are the trusted directories of .nspawn files, which are
	// renamed, cloned and removed with the image.
	NspawnDirs []string
	// LockDir holds the image locks that are shared with the spawner.
	LockDir string
	// NoHost leaves the pseudo image .host out.
	NoHost bool
	// HostRoot is the path of .host.
	HostRoot string
	Log      logrus.FieldLogger
}

// Store finds and changes images. It keeps nothing between calls: the file
// system is the truth. Safe for concurrent use.
type Store struct {
	cfg Config
	log logrus.FieldLogger
}

// Places says where the store looks for images and for settings, and where its locks are.
func (s *Store) Places() (search, nspawn []string, locks string) {
	return s.cfg.SearchPath, s.cfg.NspawnDirs, s.cfg.LockDir
}

// NewStore returns a store over the directories of cfg.
func NewStore(cfg Config) *Store {
	if cfg.Class == "" {
		cfg.Class = ClassMachine
	}
	if cfg.SearchPath == nil {
		cfg.SearchPath = SearchPath(cfg.Class)
	}
	if cfg.PoolDir == "" {
		cfg.PoolDir = PoolDir(cfg.Class)
	}
	if cfg.NspawnDirs == nil {
		cfg.NspawnDirs = []string{"/etc/systemd/nspawn", "/run/systemd/nspawn"}
	}
	if cfg.LockDir == "" {
		cfg.LockDir = "/run/systemd/nspawn/locks"
	}
	if cfg.HostRoot == "" {
		cfg.HostRoot = "/"
	}
	if cfg.Class != ClassMachine {
		cfg.NoHost = true
	}
	log := cfg.Log
	if log == nil {
		quiet := logrus.New()
		quiet.SetOutput(os.Stderr)
		quiet.SetLevel(logrus.WarnLevel)
		log = quiet
	}
	return &Store{cfg: cfg, log: log}
}
