package nsexec

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// IDRange is one line of a uid_map or gid_map (user_namespaces(7)).
type IDRange struct {
	Inside, Outside, Count uint32
}

// IDMap is how the IDs of a user namespace map to ours.
type IDMap []IDRange

// maxMap bounds what is read of a map; the kernel allows 340 lines.
const maxMap = 64 << 10

// ParseIDMap reads a uid_map or gid_map.
func ParseIDMap(r io.Reader) (IDMap, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxMap+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxMap {
		return nil, fmt.Errorf("parse id map: longer than %d bytes", maxMap)
	}
	var out IDMap
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 3 {
			return nil, fmt.Errorf("parse id map: line %q has %d fields, not 3", strings.TrimSpace(line), len(fields))
		}
		var n [3]uint32
		for i, field := range fields {
			v, err := strconv.ParseUint(field, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("parse id map: line %q: %w", strings.TrimSpace(line), err)
			}
			n[i] = uint32(v)
		}
		if n[2] == 0 || n[0]+(n[2]-1) < n[0] || n[1]+(n[2]-1) < n[1] {
			return nil, fmt.Errorf("parse id map: line %q is no range", strings.TrimSpace(line))
		}
		out = append(out, IDRange{n[0], n[1], n[2]})
	}
	return out, nil
}

// Outer maps an ID inside to ours.
func (m IDMap) Outer(id uint32) (uint32, bool) {
	for _, r := range m {
		if id >= r.Inside && id-r.Inside < r.Count {
			return r.Outside + (id - r.Inside), true
		}
	}
	return 0, false
}

// Inner maps an ID of ours to the one inside. Ranges that start at our own root
// are left out: they are no private range.
func (m IDMap) Inner(id uint32) (uint32, bool) {
	for _, r := range m {
		if r.Outside != 0 && id >= r.Outside && id-r.Outside < r.Count {
			return r.Inside + (id - r.Outside), true
		}
	}
	return 0, false
}

func readIDMap(pid int, name string) (IDMap, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/" + name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read %s of process %d: %w", name, pid, unix.ESRCH)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ParseIDMap(f)
}

// UserMap returns the UID map of the process.
func UserMap(p *sys.Process) (IDMap, error) { return checkedMap(p, "uid_map") }

// GroupMap returns the GID map of the process.
func GroupMap(p *sys.Process) (IDMap, error) { return checkedMap(p, "gid_map") }

func checkedMap(p *sys.Process, name string) (IDMap, error) {
	m, err := readIDMap(p.PID(), name)
	if err != nil {
		return nil, err
	}
	if !p.Alive() {
		return nil, fmt.Errorf("read %s of process %d: %w", name, p.PID(), unix.ESRCH)
	}
	return m, nil
}

// minShifted is the least number of IDs that a machine must have for its map to
// count as a plain shift.
const minShifted = 65534

// UIDShift returns the UID that the process's root maps to. Both maps must be
// one same range that starts at 0 inside; any other map is unix.ENXIO.
func UIDShift(p *sys.Process) (uint32, error) {
	uids, err := UserMap(p)
	if err != nil {
		return 0, err
	}
	gids, err := GroupMap(p)
	if err != nil {
		return 0, err
	}
	if len(uids) != 1 || len(gids) != 1 || uids[0] != gids[0] || uids[0].Inside != 0 || uids[0].Count < minShifted {
		return 0, fmt.Errorf("id map of process %d is no single range of at least %d ids from 0: %w", p.PID(), minShifted, unix.ENXIO)
	}
	return uids[0].Outside, nil
}

// rootIDs are the UID and GID that root inside maps to.
func rootIDs(p *sys.Process) (uid, gid uint32, err error) {
	uids, err := UserMap(p)
	if err != nil {
		return 0, 0, err
	}
	gids, err := GroupMap(p)
	if err != nil {
		return 0, 0, err
	}
	uid, okUID := uids.Outer(0)
	gid, okGID := gids.Outer(0)
	if !okUID || !okGID {
		return 0, 0, fmt.Errorf("root of process %d is not mapped: %w", p.PID(), unix.ENXIO)
	}
	return uid, gid, nil
}
