package sys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// procFile reads /proc/PID/name; a process that is gone gives unix.ESRCH. The
// files are short and never wait, so that three system calls are enough where
// os.ReadFile needs six: a read that leaves room in the buffer was the last.
func procFile(pid int, name string) ([]byte, error) {
	path := "/proc/" + strconv.Itoa(pid) + "/" + name
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, procError(pid, name, err)
	}
	defer unix.Close(fd)
	data := make([]byte, 0, 1024)
	for {
		n, err := unix.Read(fd, data[len(data):cap(data)])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, procError(pid, name, err)
		}
		data = data[:len(data)+n]
		if n == 0 || len(data) < cap(data) {
			return data, nil
		}
		data = slices.Grow(data, 1)
	}
}

func procError(pid int, name string, err error) error {
	if errors.Is(err, unix.ENOENT) {
		err = unix.ESRCH
	}
	return fmt.Errorf("read %s of process %d: %w", name, pid, err)
}

// statFields returns the fields of /proc/PID/stat that follow the command
// name, so that index 0 is field 3 of proc_pid_stat(5).
func statFields(pid int) ([]string, error) {
	data, err := procFile(pid, "stat")
	if err != nil {
		return nil, err
	}
	return parseStat(data, pid)
}

func parseStat(data []byte, pid int) ([]string, error) {
	// The command name may hold anything, so fields start behind the last ")".
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return nil, fmt.Errorf("parse stat of process %d: no command name", pid)
	}
	fields := strings.Fields(string(data[end+1:]))
	if len(fields) < 20 {
		return nil, fmt.Errorf("parse stat of process %d: only %d fields", pid, len(fields)+2)
	}
	return fields, nil
}

func startTime(pid int) (uint64, error) {
	fields, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// ParentOf returns the PID of pid's parent, 0 for one outside our PID namespace.
func ParentOf(pid int) (int, error) {
	fields, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(fields[1])
}

// kernelThread is PF_KTHREAD of the kernel's sched.h.
const kernelThread = 0x00200000

// IsKernelThread reports whether pid is a thread of the kernel's.
func IsKernelThread(pid int) (bool, error) {
	fields, err := statFields(pid)
	if err != nil {
		return false, err
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	if err != nil {
		return false, fmt.Errorf("parse flags of process %d: %w", pid, err)
	}
	return flags&kernelThread != 0, nil
}

// OwnerOf returns the UID that owns a file, as our user namespace sees it.
func OwnerOf(path string) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	return st.Uid, nil
}

// UIDOf returns the effective UID of pid, as our user namespace sees it.
func UIDOf(pid int) (uint32, error) {
	data, err := procFile(pid, "status")
	if err != nil {
		return 0, err
	}
	return parseUID(data, pid)
}

func parseUID(data []byte, pid int) (uint32, error) {
	for line := range strings.Lines(string(data)) {
		value, ok := strings.CutPrefix(line, "Uid:")
		if !ok {
			continue
		}
		fields := strings.Fields(value)
		if len(fields) < 2 {
			break
		}
		uid, err := strconv.ParseUint(fields[1], 10, 32)
		return uint32(uid), err
	}
	return 0, fmt.Errorf("parse status of process %d: no Uid line", pid)
}

// CgroupOf returns the path of pid in the cgroup v2 tree, from its line "0::"
// in /proc/PID/cgroup (cgroups(7)). It falls back to the line of the named v1
// hierarchy of systemd where v2 is not mounted. The result starts with "/".
func CgroupOf(pid int) (string, error) {
	data, err := procFile(pid, "cgroup")
	if err != nil {
		return "", err
	}
	return parseCgroup(string(data), pid)
}

func parseCgroup(data string, pid int) (string, error) {
	legacy := ""
	for line := range strings.Lines(data) {
		line = strings.TrimSuffix(line, "\n")
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSuffix(path, " (deleted)"), nil
		}
		if _, rest, ok := strings.Cut(line, ":name=systemd:"); ok {
			legacy = rest
		}
	}
	if legacy != "" {
		return legacy, nil
	}
	return "", fmt.Errorf("parse cgroup of process %d: no cgroup v2 line: %w", pid, unix.ENODATA)
}

// SameNamespace reports whether two processes share the namespace kind ("net",
// "mnt", "user", ...; namespaces(7)).
func SameNamespace(a, b int, kind string) (bool, error) {
	var sa, sb unix.Stat_t
	if err := unix.Stat(nsPath(a, kind), &sa); err != nil {
		return false, nsError(a, kind, err)
	}
	if err := unix.Stat(nsPath(b, kind), &sb); err != nil {
		return false, nsError(b, kind, err)
	}
	return sa.Dev == sb.Dev && sa.Ino == sb.Ino, nil
}

func nsPath(pid int, kind string) string {
	if pid == 0 {
		return "/proc/self/ns/" + kind
	}
	return "/proc/" + strconv.Itoa(pid) + "/ns/" + kind
}

func nsError(pid int, kind string, err error) error {
	if errors.Is(err, unix.ENOENT) {
		err = unix.ESRCH
	}
	return fmt.Errorf("look at %s namespace of process %d: %w", kind, pid, err)
}

// OpenNamespace opens one namespace of the pinned process; the caller closes
// the file. The process is known to be alive after the open, so that the
// namespace is its own and not that of a later process with the same PID.
func OpenNamespace(p *Process, kind string) (*os.File, error) {
	fd, err := unix.Open(nsPath(p.pid, kind), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nsError(p.pid, kind, err)
	}
	file := os.NewFile(uintptr(fd), nsPath(p.pid, kind))
	if !p.Alive() {
		_ = file.Close()
		return nil, nsError(p.pid, kind, unix.ESRCH)
	}
	return file, nil
}
