package spawn

import (
	"os"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"machined/internal/pathlock"
	"machined/spawn/stage"
)

// chore is something that is to be done at the machine's end. It is data, so that it
// can be handed to the program that waits meanwhile, and back (rest.go).
type chore struct {
	Kind  choreKind
	Path  string
	Index int
	Files []heldFile // stay open until then
	Kept  bool       // not after each run, but when the machine is not started again (kept.go)
}

type choreKind int

const (
	choreClose      choreKind = iota // nothing but to close the files
	choreRemove                      // a file or an empty directory
	choreRemoveTree                  // a directory and what is in it
	choreLocks                       // the files are locks (package pathlock)
	choreExport                      // of the machine's sockets; the file is its lock
	choreUnregister                  // the machine
	choreCgroup                      // remove, with what is in it
	choreLink                        // remove a link of ours, by index and name
	choreZone                        // remove the bridge if it has no ports
	choreLent                        // give back interfaces; the file is the lock of the directory
	choreForget                      // a unit that stands for AfterEnd
)

// heldFile is an open file that a chore needs, or that holds something by being open.
type heldFile struct {
	FD   int
	Path string
}

// undoStep is one step of taking everything down. Without a chore it can't be handed over.
type undoStep struct {
	do    func()
	chore *chore
	// held are the owners of the chore's descriptors.
	held []*os.File
	// ours is set for what the end of this process does as well.
	ours bool
}

// undo registers what is to be done at the end, last first.
func (m *machine) undo(f func()) { m.undos = append(m.undos, undoStep{do: f}) }

// undoOurs is undo for what the process's end does by itself.
func (m *machine) undoOurs(f func()) { m.undos = append(m.undos, undoStep{do: f, ours: true}) }

// owe registers a chore for the end.
func (m *machine) owe(c chore, held ...*os.File) { m.undos = append(m.undos, m.step(c, held)) }

// oweLast registers a chore that is to be done after everything registered so far.
func (m *machine) oweLast(c chore, held ...*os.File) {
	m.undos = append([]undoStep{m.step(c, held)}, m.undos...)
}

// oweLocks registers locks that are held until the end.
func (m *machine) oweLocks(files []*os.File) {
	if len(files) > 0 {
		m.owe(chore{Kind: choreLocks}, files...)
	}
}

func (m *machine) step(c chore, held []*os.File) undoStep {
	for _, f := range held {
		c.Files = append(c.Files, heldFile{int(f.Fd()), f.Name()})
	}
	return undoStep{chore: &c, held: held}
}

// cleanUp takes everything down, but for what the next run has, too, if there is one.
func (m *machine) cleanUp(again bool) {
	var kept []undoStep
	for i := len(m.undos) - 1; i >= 0; i-- {
		u := m.undos[i]
		if again && u.chore != nil && u.chore.Kept {
			kept = append(kept, u)
			continue
		}
		if u.chore == nil {
			u.do()
			continue
		}
		m.carryOut(u.chore)
		runtime.KeepAlive(u.held)
		for _, f := range u.held {
			_ = f.Close()
		}
	}
	slices.Reverse(kept)
	m.undos = kept
}

// carryOut does a chore. The files are closed afterwards.
func (m *machine) carryOut(c *chore) {
	switch c.Kind {
	case choreRemove:
		_ = os.Remove(c.Path)
	case choreRemoveTree:
		_ = os.RemoveAll(c.Path)
	case choreLocks:
		for i := len(c.Files) - 1; i >= 0; i-- {
			pathlock.Drop(c.Files[i].FD, c.Files[i].Path)
		}
	case choreExport:
		stage.RemoveExport(c.Path)
	case choreUnregister:
		m.unregister()
	case choreCgroup:
		removeCgroup(c.Path)
	case choreLink:
		// Gone already where the machine's namespace is.
		if l, err := netlink.LinkByIndex(c.Index); err == nil && l.Attrs().Name == c.Path {
			_ = netlink.LinkDel(l)
		}
	case choreZone:
		removeZone(c.Path)
	case choreLent:
		if err := giveBackFrom(c.Path); err != nil {
			m.warn("%v; ignoring, it is tried again later", err)
		}
	case choreForget:
		m.bus.Forget(c.Path)
	case choreClose:
	}
}

// adopt takes over chores that another program has handed back, with their files.
func (m *machine) adopt(chores []chore) {
	for _, c := range chores {
		var held []*os.File
		for _, f := range c.Files {
			unix.CloseOnExec(f.FD)
			held = append(held, os.NewFile(uintptr(f.FD), f.Path))
		}
		m.undos = append(m.undos, undoStep{chore: &c, held: held})
	}
}

// handOver are the chores as they are handed over; false when something can't be.
func (m *machine) handOver() ([]chore, bool) {
	var out []chore
	for _, u := range m.undos {
		switch {
		case u.chore != nil:
			out = append(out, *u.chore)
		case !u.ours:
			return nil, false
		}
	}
	return out, true
}
