package cgroup

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// record is what survives machined about a spawner, in units/UNIT.
type record struct {
	Image     string `json:"image"`
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // clock ticks since boot, proc_pid_stat(5)
	Ready     bool   `json:"ready"`
	Status    string `json:"status,omitempty"`
	Stopping  bool   `json:"stopping,omitempty"`
}

func (b *Backend) recordPath(name string) string {
	return filepath.Join(b.cfg.StateDir, "units", name)
}

func (b *Backend) logPath(image string) string {
	return filepath.Join(b.cfg.StateDir, "log", image+".log")
}

func (b *Backend) saveRecord(name string, r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	temp := filepath.Join(b.cfg.StateDir, "units", ".#"+name)
	if err := os.WriteFile(temp, append(data, '\n'), 0o644); err != nil {
		_ = os.Remove(temp)
		return fmt.Errorf("save record of unit %q: %w", name, err)
	}
	if err := os.Rename(temp, b.recordPath(name)); err != nil {
		_ = os.Remove(temp)
		return fmt.Errorf("save record of unit %q: %w", name, err)
	}
	return nil
}

func (b *Backend) loadRecord(name string) (record, error) {
	var r record
	data, err := os.ReadFile(b.recordPath(name))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("read record of unit %q: %w", name, err)
	}
	return r, nil
}
