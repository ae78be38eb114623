package systemd1

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// cgroupRoot is where systemd mounts the unified hierarchy (cgroups(7)); the
// second is its place in a hybrid layout.
var cgroupRoots = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}

// cgroupDir is where a cgroup is mounted. It returns ESRCH where there is none.
func cgroupDir(path string) (string, error) {
	for _, root := range cgroupRoots {
		dir := filepath.Join(root, path)
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
			return dir, nil
		}
	}
	return "", &fs.PathError{Op: "open", Path: path, Err: unix.ESRCH}
}

// signalCgroup signals each process of one cgroup below a unit, and of the
// cgroups below that one. New processes that fork meanwhile are found by going
// over it again until a pass finds none that it has not seen.
func signalCgroup(unitCgroup, subgroup string, sig unix.Signal) error {
	top, err := cgroupDir(filepath.Join(unitCgroup, subgroup))
	if err != nil {
		return err
	}
	seen := map[int]bool{}
	var first error
	for range 16 {
		fresh := 0
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil //nolint:nilerr // a cgroup that went away has no processes
			}
			data, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			if err != nil {
				return nil //nolint:nilerr // as above
			}
			for field := range strings.FieldsSeq(string(data)) {
				pid, err := strconv.Atoi(field)
				if err != nil || pid <= 0 || seen[pid] {
					continue
				}
				seen[pid] = true
				fresh++
				if err := signalPID(pid, sig); err != nil && first == nil {
					first = err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if fresh == 0 {
			break
		}
	}
	return first
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
