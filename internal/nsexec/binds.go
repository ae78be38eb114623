package nsexec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"machined/internal/sys"
)

// Binds remembers what was bound into machines while they run, in one file per
// machine, so that it can be listed and taken back, also by a later daemon. The
// kernel's mount table decides what is still there. Safe for concurrent use.
type Binds struct {
	dir string
	mu  sync.Mutex // one change of a file at a time
}

// NewBinds keeps its files in dir, which is made when first needed.
func NewBinds(dir string) *Binds { return &Binds{dir: dir} }

// LiveBind is a bind mount that exists in a machine.
type LiveBind struct {
	Source, Destination string
	ReadOnly            bool
	MountID             uint64
	// Leader is when the leader started for whom this was mounted: a machine of
	// the same name later has none of it.
	Leader uint64
}

func (s *Binds) path(machine string) string { return filepath.Join(s.dir, machine) }

func (s *Binds) load(machine string) ([]LiveBind, error) {
	data, err := os.ReadFile(s.path(machine))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseBinds(data), nil
}

// parseBinds skips lines that are no bind, such as a half-written one.
func parseBinds(data []byte) []LiveBind {
	var out []LiveBind
	for line := range bytes.Lines(data) {
		var b LiveBind
		if json.Unmarshal(line, &b) == nil {
			out = append(out, b)
		}
	}
	return out
}

func (s *Binds) save(machine string, binds []LiveBind) error {
	if len(binds) == 0 {
		err := os.Remove(s.path(machine))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	var buf bytes.Buffer
	encoder := json.NewEncoder(&buf)
	for _, b := range binds {
		if err := encoder.Encode(b); err != nil {
			return err
		}
	}
	tmp := filepath.Join(s.dir, ".#"+machine)
	if err := os.WriteFile(tmp, buf.Bytes(), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, s.path(machine))
}

// Forget drops what is known of a machine that has ended.
func (s *Binds) Forget(machine string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.save(machine, nil)
}

// Mount binds into the machine and remembers it. What is done in the machine is
// done without the lock: a machine that hangs must not keep the others waiting.
func (s *Binds) Mount(ctx context.Context, machine string, p *sys.Process, b Bind) error {
	id, err := Mount(ctx, p, b)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	binds, err := s.live(machine, p)
	if err == nil && p.Alive() { // else Forget has been, or will be, called
		binds = append(binds, LiveBind{Source: b.Source, Destination: b.Destination, ReadOnly: b.ReadOnly, MountID: id, Leader: p.StartTime()})
		err = s.save(machine, binds)
	}
	if err != nil {
		return fmt.Errorf("remember bind mount at %q: %w", b.Destination, err)
	}
	return nil
}

// Unmount takes the newest bind mount at destination back.
func (s *Binds) Unmount(ctx context.Context, machine string, p *sys.Process, destination string) error {
	binds, err := s.List(machine, p)
	if err != nil {
		return err
	}
	for _, b := range slices.Backward(binds) {
		if b.Destination != destination {
			continue
		}
		if err := Unmount(ctx, p, destination, b.MountID); err != nil {
			return err
		}
		return s.drop(machine, p, b.MountID)
	}
	return fmt.Errorf("unmount %q: %w", destination, ErrNoSuchBind)
}

// drop forgets one bind mount.
func (s *Binds) drop(machine string, p *sys.Process, mountID uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	binds, err := s.live(machine, p)
	if err != nil {
		return err
	}
	return s.save(machine, slices.DeleteFunc(binds, func(b LiveBind) bool { return b.MountID == mountID }))
}

// List returns the bind mounts that exist in the machine now.
func (s *Binds) List(machine string, p *sys.Process) ([]LiveBind, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live(machine, p)
}

func (s *Binds) live(machine string, p *sys.Process) ([]LiveBind, error) {
	binds, err := s.load(machine)
	if err != nil || len(binds) == 0 {
		return nil, err
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID()) + "/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mount table of process %d: %w", p.PID(), err)
	}
	ids := mountIDs(string(data))
	return slices.DeleteFunc(binds, func(b LiveBind) bool {
		return b.Leader != p.StartTime() || !ids[b.MountID]
	}), nil
}

// mountIDs are the first fields of mountinfo (proc_pid_mountinfo(5)).
func mountIDs(mountinfo string) map[uint64]bool {
	out := map[uint64]bool{}
	for line := range strings.Lines(mountinfo) {
		field, _, _ := strings.Cut(line, " ")
		if id, err := strconv.ParseUint(field, 10, 64); err == nil {
			out[id] = true
		}
	}
	return out
}
