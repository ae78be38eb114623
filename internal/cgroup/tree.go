// Package cgroup is the unit backend without systemd: machine.slice, its
// scopes and its spawner services made by hand in the cgroup v2 tree, watched
// through cgroup.events and ended through cgroup.kill. It owns that part of the
// tree and the spawners that it starts in it, and touches no other cgroup. It
// decides nothing: the registry says what to start, stop and kill.
package cgroup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"machined/internal/sys"
	"machined/internal/unit"
)

// Tree is a cgroup v2 hierarchy.
type Tree struct {
	Root string // where it is mounted
}

// ErrNoCgroup2 says that no cgroup v2 hierarchy is mounted.
var ErrNoCgroup2 = errors.New("no cgroup v2 hierarchy is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup")

// FindTree finds the hierarchy in a file of the format of /proc/self/mountinfo;
// in a hybrid layout it is one mount among many.
func FindTree(in io.Reader) (Tree, error) {
	mounts, err := mountinfo.GetMountsFromReader(in, mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return Tree{}, fmt.Errorf("read mountinfo: %w", err)
	}
	for _, m := range mounts {
		// A bind mount of a part is of no use: paths in /proc/PID/cgroup start
		// at the root.
		if m.Root == "/" {
			return Tree{Root: m.Mountpoint}, nil
		}
	}
	return Tree{}, ErrNoCgroup2
}

// FindOwnTree finds the hierarchy of this process.
func FindOwnTree() (Tree, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Tree{}, err
	}
	defer file.Close()
	return FindTree(file)
}

// dir is the directory of a unit, "" if its name is none.
func (t Tree) dir(name string) (string, error) {
	if !unit.Valid(name) || name == unit.Slice {
		return "", fmt.Errorf("unit %q: %w", name, unix.EINVAL)
	}
	return filepath.Join(t.Root, unit.Slice, name), nil
}

// sub is a cgroup below a unit, which a caller's path must not leave.
func (t Tree) sub(name, subgroup string) (string, error) {
	dir, err := t.dir(name)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, path.Clean("/"+subgroup)), nil
}

func (t Tree) make(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return nil
}

// populated reads cgroup.events (Documentation/admin-guide/cgroup-v2.rst). A
// cgroup that is gone is empty.
func populated(dir string) (bool, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return strings.Contains("\n"+string(data), "\npopulated 1"), nil
}

// enter moves a process into a cgroup.
func enter(dir string, p *sys.Process) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(p.PID())), 0)
	if err == nil && !p.Alive() {
		err = unix.ESRCH
	}
	if err != nil {
		return fmt.Errorf("move process %d into cgroup: %w", p.PID(), err)
	}
	return nil
}

// kill ends every process of a cgroup and of those below it, at once. Without
// cgroup.kill (Linux before 5.14) each one is signalled.
func kill(dir string) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	switch {
	case err == nil, errors.Is(err, unix.ENODEV):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		if _, serr := os.Stat(dir); serr != nil {
			return nil
		}
		return signal(dir, unix.SIGKILL)
	}
	return err
}

// Freeze stops or continues every process of a unit (cgroup.freeze).
func (t Tree) Freeze(name string, on bool) error {
	dir, err := t.dir(name)
	if err != nil {
		return err
	}
	value := "0"
	if on {
		value = "1"
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte(value), 0)
}

// signal signals each process of a cgroup and of those below it, again and
// again until a pass meets none that it has not met: a process may fork
// meanwhile.
func signal(top string, sig unix.Signal) error {
	seen := map[int]bool{}
	var first error
	for range 16 {
		fresh := 0
		for _, pid := range procs(top) {
			if seen[pid] {
				continue
			}
			seen[pid] = true
			fresh++
			if err := signalPID(pid, sig); err != nil && first == nil {
				first = err
			}
		}
		if fresh == 0 {
			break
		}
	}
	return first
}

// procs lists the processes of a cgroup and of those below it.
func procs(top string) []int {
	var pids []int
	_ = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // a cgroup that went away has no processes
		}
		data, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		for field := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

func signalPID(pid int, sig unix.Signal) error {
	p, err := sys.OpenProcess(pid)
	if err != nil {
		return nil //nolint:nilerr // it has ended
	}
	defer p.Close()
	if err := p.Signal(sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// remove deletes a cgroup and those below it, which must be empty.
func remove(top string) error {
	entries, err := os.ReadDir(top)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, remove(filepath.Join(top, e.Name())))
		}
	}
	if rerr := unix.Rmdir(top); rerr != nil && !errors.Is(rerr, unix.ENOENT) {
		err = errors.Join(err, &os.PathError{Op: "rmdir", Path: top, Err: rerr})
	}
	return err
}
