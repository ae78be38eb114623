package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
)

// stateFiles is the directory of the state files and of the links unit:UNIT,
// which lead from a unit to the name of the machine in it.
type stateFiles struct {
	dir string
}

const linkPrefix = "unit:"

var tempSeq atomic.Uint64 // names only: any two temporaries differ

func (s stateFiles) path(name string) string { return filepath.Join(s.dir, name) }

func (s stateFiles) temp(name string) string {
	return s.path(".#" + name + "." + strconv.Itoa(os.Getpid()) + "." + strconv.FormatUint(tempSeq.Add(1), 10))
}

// prepare makes the directory. That it exists says that machined is there.
func (s stateFiles) prepare() error { return os.MkdirAll(s.dir, 0o755) }

// save writes the files of m, each to a temporary file that is then renamed.
// After an error what was there before may be there still.
func (s stateFiles) save(m *Machine) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("save state of machine %q: %w", m.Name, err)
		}
	}()
	temp := s.temp(m.Name)
	file, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		// Somebody has removed the directory; it is not ours to give up.
		if err = s.prepare(); err == nil {
			file, err = os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		}
	}
	if err != nil {
		return err
	}
	err = errors.Join(writeState(file, m), file.Chmod(0o644))
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(temp, s.path(m.Name))
	}
	if err != nil {
		_ = os.Remove(temp)
		return err
	}
	if !ownsUnit(m) {
		return nil
	}
	temp = s.temp("link")
	if err := os.Symlink(m.Name, temp); err != nil {
		return err
	}
	if err := os.Rename(temp, s.path(linkPrefix+m.Unit)); err != nil {
		_ = os.Remove(temp)
		return err
	}
	return nil
}

// remove deletes the files of m; it leaves a link that leads elsewhere.
func (s stateFiles) remove(m *Machine) error {
	var errs []error
	if m.Unit != "" && !strings.Contains(m.Unit, "/") {
		link := s.path(linkPrefix + m.Unit)
		if target, err := os.Readlink(link); err == nil && target == m.Name {
			errs = append(errs, os.Remove(link))
		}
	}
	if err := os.Remove(s.path(m.Name)); !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// names lists the machines that have a state file, and sweeps out what nobody
// would ever remove: temporaries of a killed daemon and links to nowhere.
func (s stateFiles) names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		switch {
		case strings.HasPrefix(name, ".#"):
			_ = os.Remove(s.path(name))
		case strings.HasPrefix(name, linkPrefix):
			if _, err := os.Stat(s.path(name)); errors.Is(err, fs.ErrNotExist) {
				_ = os.Remove(s.path(name))
			}
		case e.Type().IsRegular() && ValidName(name):
			names = append(names, name)
		}
	}
	return names, nil
}

// load reads one state file; its name must be that of the machine.
func (s stateFiles) load(name string) (Machine, error) {
	file, err := os.Open(s.path(name))
	if err != nil {
		return Machine{}, err
	}
	defer file.Close()
	m, err := parseState(file)
	if err != nil {
		return m, err
	}
	if m.Name != name {
		return m, fmt.Errorf("%w: NAME=%s in the file of %q", errBadState, clip(m.Name), name)
	}
	return m, nil
}
