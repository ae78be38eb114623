package spawn

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupMount is where cgroup v2 is mounted, also in a hybrid layout; "" where
// it is not.
func cgroupMount() string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		if fields := strings.Fields(before); ok && strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			return fields[4]
		}
	}
	return ""
}

// cgroupOf is the cgroup v2 path of a process.
func cgroupOf(pid int) (string, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return p, nil
		}
	}
	return "", fmt.Errorf("process %d is in no cgroup v2: %w", pid, unix.ENOENT)
}

// delegated are the files of a cgroup that belong to whom it is delegated to
// (cgroups(7), "Delegation").
var delegated = []string{
	"", "cgroup.controllers", "cgroup.events", "cgroup.procs", "cgroup.stat", "cgroup.subtree_control",
	"cgroup.threads", "memory.oom.group", "memory.reclaim",
}

// ownUnit is the unit's cgroup, divided for a machine that keeps it (--keep-unit).
type ownUnit struct {
	dir     string   // of the unit
	payload *os.File // cgroup that the first process is born in
	entered func() error
}

// divideUnit divides our unit's cgroup into payload and supervisor. Moving into the
// latter takes several milliseconds, in which the kernel waits for all processors: it goes on
// meanwhile, until enterUnit.
func (m *machine) divideUnit() (err error) {
	mount := cgroupMount()
	if mount == "" || !m.opts.KeepUnit {
		return nil
	}
	self, err := cgroupOf(os.Getpid())
	if err != nil {
		return err
	}
	unit := strings.TrimSuffix(self, "/supervisor")
	own := unit == "" || unit == "/"
	if own {
		if unit, err = m.makeScope(mount); err != nil {
			return err
		}
	}
	u := &ownUnit{dir: filepath.Join(mount, unit)}
	if err := m.makePayload(u.dir); err != nil {
		return err
	}
	if u.payload, err = os.Open(m.cgroup); err != nil {
		return err
	}
	m.unit = u
	if own || self != unit {
		return nil
	}
	supervisor := filepath.Join(u.dir, "supervisor")
	err = os.Mkdir(supervisor, 0o755)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make cgroup %s/supervisor: %w", unit, err)
	}
	entered := make(chan error, 1)
	go func() { entered <- writeFile(supervisor+"/cgroup.procs", strconv.Itoa(os.Getpid())) }()
	u.entered = sync.OnceValue(func() error {
		if err := <-entered; err != nil {
			return fmt.Errorf("enter cgroup %s/supervisor: %w", unit, err)
		}
		return nil
	})
	m.undoOurs(func() { // nothing to be done after a start that worked
		if m.failed && u.entered() == nil && writeFile(u.dir+"/cgroup.procs", strconv.Itoa(os.Getpid())) == nil {
			_ = unix.Rmdir(supervisor)
		}
	})
	return nil
}

// enterUnit waits until the processes of a unit that is kept are where they belong.
func (m *machine) enterUnit() error {
	u := m.unit
	if u == nil {
		return nil
	}
	if u.entered != nil {
		if err := u.entered(); err != nil {
			return err
		}
	}
	m.guardSettings()
	return m.delegate(u.dir)
}

// enterCgroup puts the first process into the payload's part of the scope that it
// is in, or of one of our own making.
func (m *machine) enterCgroup(own bool) error {
	mount := cgroupMount()
	if mount == "" {
		return nil
	}
	unit, err := cgroupOf(m.c.PID)
	if err != nil {
		return nil // no cgroup v2 for it
	}
	if own || unit == "/" {
		if unit, err = m.makeScope(mount); err != nil {
			return err
		}
	}
	dir := filepath.Join(mount, unit)
	if err := m.makePayload(dir); err != nil {
		return err
	}
	m.guardSettings()
	if err := writeFile(m.cgroup+"/cgroup.procs", strconv.Itoa(m.c.PID)); err != nil {
		return fmt.Errorf("enter cgroup %s/payload: %w", unit, err)
	}
	return m.delegate(dir)
}

// makeScope makes a cgroup where no service manager does.
func (m *machine) makeScope(mount string) (string, error) {
	unit := filepath.Join("/machine.slice", "machine-"+m.opts.Machine+".scope")
	dir := filepath.Join(mount, unit)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make cgroup %s: %w", unit, err)
	}
	m.owe(chore{Kind: choreCgroup, Path: dir})
	return unit, nil
}

// makePayload makes the payload's cgroup below that of a unit.
func (m *machine) makePayload(dir string) error {
	payload := filepath.Join(dir, "payload")
	if err := os.Mkdir(payload, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make cgroup: %w", err)
	}
	m.owe(chore{Kind: choreCgroup, Path: payload})
	m.cgroup = payload
	return nil
}

// delegate gives the payload's cgroup to the machine's root, with the controllers
// of the unit, in which no process may be any more.
func (m *machine) delegate(dir string) error {
	if u := m.plan.Userns; u != nil && u.Base != 0 {
		for _, name := range delegated {
			err := os.Chown(filepath.Join(m.cgroup, name), int(u.Base), int(u.Base))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("delegate cgroup: %w", err)
			}
		}
	}
	enableControllers(dir)
	return nil
}

// enableControllers lets the payload use what the unit was given. Controllers
// that can't be divided stay with the unit.
func enableControllers(dir string) {
	data, err := os.ReadFile(dir + "/cgroup.controllers")
	if err != nil {
		return
	}
	for _, name := range strings.Fields(string(data)) {
		_ = writeFile(dir+"/cgroup.subtree_control", "+"+name)
	}
}

func writeFile(name, value string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// removeCgroup kills what is left in a cgroup and removes it with what is below.
func removeCgroup(dir string) {
	_ = writeFile(dir+"/cgroup.kill", "1")
	deadline := time.Now().Add(2 * time.Second)
	for {
		var dirs []string
		_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = unix.Rmdir(dirs[i])
		}
		if _, err := os.Lstat(dir); err != nil || time.Now().After(deadline) || !waitEmpty(dir, deadline) {
			return
		}
	}
}

// noticeAfter is longer than the kernel holds back a second change of a cgroup's
// state (10 ms). When PID 1 removes the cgroup meanwhile, nobody is told at all.
const noticeAfter = 15 * time.Millisecond

// waitEmpty waits for a change of cgroup.events, which the kernel announces as
// an exceptional condition of the file (cgroup-v2, "populated"), or as long as
// such an announcement can take.
func waitEmpty(dir string, deadline time.Time) bool {
	fd, err := unix.Open(dir+"/cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	var buf [256]byte
	n, _ := unix.Pread(fd, buf[:], 0)
	if strings.Contains(string(buf[:max(n, 0)]), "populated 0") {
		return true
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}
	patience := min(time.Until(deadline), noticeAfter)
	_, err = unix.Poll(fds, int(max(patience.Milliseconds(), 1)))
	return err == nil || errors.Is(err, unix.EINTR)
}
