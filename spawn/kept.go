package spawn

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// kept is what a machine that reboots has still: what was written to its ephemeral
// root and its temporary directories, with the users to whom that belongs. What lies
// in memory begins anew.
type kept struct {
	Overlay     string   // stage.Root.Overlay
	Temps       []string // directories for binds without a source, in the order of the mounts
	Base, Count uint32   // of the users that were picked; Count 0: none were
	ID          string   // 16 bytes, of the machine's ID if it was drawn for want of one
}

// keep says of the chore that was registered last that the next run needs what it
// takes away.
func (m *machine) keep() {
	if n := len(m.undos); n > 0 {
		m.undos[n-1].chore.Kept = true
	}
}

// drawnID is a machine's ID that nobody has said.
func (m *machine) drawnID() (id [16]byte) {
	if m.kept.ID == "" {
		id = newID()
		m.kept.ID = string(id[:])
	}
	copy(id[:], m.kept.ID)
	return id
}

// tempDir is a directory that goes away with the machine.
func (m *machine) tempDir() (string, error) {
	m.temps++
	if m.temps <= len(m.kept.Temps) {
		return m.kept.Temps[m.temps-1], nil
	}
	dir, err := m.runDir("/var/tmp", "nspawn-temp-", 0o755)
	if err != nil {
		return "", fmt.Errorf("make temporary directory: %w", err)
	}
	m.keep()
	m.kept.Temps, m.fresh = append(m.kept.Temps, dir), append(m.fresh, dir)
	return dir, nil
}

// cleanWork removes the work directories of the overlays that lie in an overlay's
// directory. In them the kernel notes that an overlay was mounted as volatile: the host
// may have crashed and lost a part of the upper layer, so that it refuses to take it
// again (Documentation/filesystems/overlayfs.rst). It has not, as we are the same process.
func cleanWork(dir string) error {
	works, err := filepath.Glob(filepath.Join(dir, "*work"))
	if err != nil {
		return err
	}
	for _, work := range works {
		if err := os.RemoveAll(work); err != nil {
			return fmt.Errorf("prepare the ephemeral root once more: %w", err)
		}
	}
	return nil
}

// keptFiles are the descriptors of what is kept, each after a blank.
func (m *machine) keptFiles() string {
	var out strings.Builder
	for _, u := range m.undos {
		for _, f := range u.chore.Files {
			out.WriteString(" " + strconv.Itoa(f.FD))
		}
	}
	return out.String()
}

// Earlier is what an earlier run has left for the next one, in another program.
type Earlier struct {
	kept  kept
	undos []undoStep
}

// Again takes over from the program that has waited for a machine that is to be
// started once more: the environment, and what is kept.
func Again(state int) (*Earlier, error) {
	s, err := readState(state)
	_ = unix.Close(state)
	if err != nil {
		return nil, err
	}
	var m machine
	for _, c := range s.Chores {
		if c.Kept {
			m.adopt([]chore{c})
		}
	}
	return &Earlier{kept: s.Kept, undos: m.undos}, nil
}
