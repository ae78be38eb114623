// Package mapped names the ids that the user namespaces of machines map onto
// the host: user vu-MACHINE-UID and group vg-MACHINE-GID, as nss-systemd(8)
// and nss-mymachines(8) show them. It reads uid_map and gid_map of leaders
// (user_namespaces(7)) and nothing inside a machine.
package mapped

import (
	"errors"
	"strconv"
	"strings"

	"machined/internal/nsexec"
	"machined/internal/sys"
	"machined/registry"
)

// FirstID is the lowest host id that can belong to a machine.
const FirstID = 65536

// NoGroup is the group that all named users are in.
const NoGroup = 65534

// ValidID says whether an id can be anybody's. -1 is no one's, and what it was
// when ids had 16 bits isn't either (systemd.io/UIDS-GIDS).
func ValidID(id uint32) bool { return id != 1<<32-1 && id != 1<<16-1 }

// ErrNotFound says that no machine maps the id, or that there is no such name.
var ErrNotFound = errors.New("no such mapped user or group")

// Machines is the table of running machines.
type Machines interface {
	Get(name string) (registry.Machine, error)
	List() []registry.Machine
}

// Kind is user or group.
type Kind byte

// The kinds, with the letter that stands for each in names.
const (
	User  Kind = 'u'
	Group Kind = 'g'
)

// Entry is one named id.
type Entry struct {
	Name    string // vu-MACHINE-INNER
	Machine string
	ID      uint32 // on the host
	Inner   uint32 // in the machine
	Comment string // UID 0 of Container NAME
}

// Directory looks names and ids up. It is safe for concurrent use.
type Directory struct {
	Machines Machines
	// ReadMap reads the map of a leader; nil: from /proc.
	ReadMap func(leader registry.Process, kind Kind) (nsexec.IDMap, error)
}

// ByID returns the entry of a host id.
func (d *Directory) ByID(kind Kind, id uint32) (Entry, error) {
	if id < FirstID || !ValidID(id) {
		return Entry{}, ErrNotFound
	}
	m, inner, err := d.ToMachine(kind, id)
	if err != nil {
		return Entry{}, err
	}
	return named(kind, m.Name, id, inner)
}

// ByName returns the entry called name.
func (d *Directory) ByName(kind Kind, name string) (Entry, error) {
	machine, inner, ok := ParseName(kind, name)
	if !ok {
		return Entry{}, ErrNotFound
	}
	m, err := d.Machines.Get(machine)
	if err != nil || m.Class != registry.ClassContainer {
		return Entry{}, ErrNotFound
	}
	id, err := d.FromMachine(m, kind, inner)
	if err != nil || id < FirstID {
		return Entry{}, ErrNotFound
	}
	return named(kind, m.Name, id, inner)
}

// FromMachine translates an id of the machine to the host's.
func (d *Directory) FromMachine(m registry.Machine, kind Kind, inner uint32) (uint32, error) {
	if !ValidID(inner) {
		return 0, ErrNotFound
	}
	ids, err := d.read(m.Leader, kind)
	if err != nil {
		return 0, err
	}
	outer, ok := ids.Outer(inner)
	if !ok {
		return 0, ErrNotFound
	}
	return outer, nil
}

// ToMachine finds the container that maps the host's id, and the id there.
// Ranges that start at the host's root are no mapping to speak of.
func (d *Directory) ToMachine(kind Kind, id uint32) (registry.Machine, uint32, error) {
	for _, m := range d.Machines.List() {
		if m.Class != registry.ClassContainer {
			continue
		}
		ids, err := d.read(m.Leader, kind)
		if err != nil {
			continue // it has just ended
		}
		if inner, ok := ids.Inner(id); ok && ValidID(inner) {
			return m, inner, nil
		}
	}
	return registry.Machine{}, 0, ErrNotFound
}

func (d *Directory) read(leader registry.Process, kind Kind) (nsexec.IDMap, error) {
	if leader.PID <= 0 {
		return nil, ErrNotFound
	}
	if d.ReadMap != nil {
		return d.ReadMap(leader, kind)
	}
	return readMap(leader, kind)
}

// readMap reads the map while the leader is pinned, so that it is not that of
// a later process with its PID.
func readMap(leader registry.Process, kind Kind) (nsexec.IDMap, error) {
	proc, err := sys.OpenProcess(leader.PID)
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	if leader.FDID != 0 && proc.FDID() != 0 && proc.FDID() != leader.FDID {
		return nil, ErrNotFound
	}
	if kind == Group {
		return nsexec.GroupMap(proc)
	}
	return nsexec.UserMap(proc)
}

func named(kind Kind, machine string, id, inner uint32) (Entry, error) {
	e := entry(kind, machine, id, inner)
	if !validUserName(e.Name) {
		return Entry{}, ErrNotFound
	}
	return e, nil
}

func entry(kind Kind, machine string, id, inner uint32) Entry {
	number := strconv.FormatUint(uint64(inner), 10)
	what := "UID "
	if kind == Group {
		what = "GID "
	}
	return Entry{
		Name:    "v" + string(kind) + "-" + machine + "-" + number,
		Machine: machine, ID: id, Inner: inner,
		Comment: what + number + " of Container " + machine,
	}
}

// ParseName cuts vu-MACHINE-ID or vg-MACHINE-ID; ids with leading zeros or a
// sign are not names that entries have.
func ParseName(kind Kind, name string) (machine string, inner uint32, ok bool) {
	rest, ok := strings.CutPrefix(name, "v"+string(kind)+"-")
	if !ok {
		return "", 0, false
	}
	dash := strings.LastIndexByte(rest, '-')
	if dash <= 0 {
		return "", 0, false
	}
	number := rest[dash+1:]
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || strconv.FormatUint(n, 10) != number || !ValidID(uint32(n)) {
		return "", 0, false
	}
	return rest[:dash], uint32(n), true
}

// maxUserName is the longest name that login records take (utmp(5)).
const maxUserName = 31

// validUserName reports whether name is one by the strict rules
// (systemd.io/USER_NAMES): names that are not would break other programs, so
// ids that would get such a name have none.
func validUserName(name string) bool {
	return len(name) <= maxUserName && strings.IndexByte(name, '.') < 0
}
