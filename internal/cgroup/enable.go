package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"machined/internal/unit"
)

// template is the unit file that an enabled machine's link leads to, which is
// what systemctl would make; here it only says that the machine is wanted.
const template = "/usr/lib/systemd/system/systemd-nspawn@.service"

const (
	machinesTarget = "machines.target"
	wantsDir       = machinesTarget + ".wants"
)

// Enable makes or removes the links that systemctl enable would make.
func (b *Backend) Enable(_ context.Context, images []string, on bool) ([]unit.Change, error) {
	var changes []unit.Change
	link := func(dir, name, target string) error {
		file := filepath.Join(b.cfg.UnitDir, dir, name)
		if got, err := os.Readlink(file); err == nil && got == target {
			return nil
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		temp := file + ".new"
		_ = os.Remove(temp)
		if err := os.Symlink(target, temp); err != nil {
			return err
		}
		if err := os.Rename(temp, file); err != nil {
			_ = os.Remove(temp)
			return err
		}
		changes = append(changes, unit.Change{Type: "symlink", File: file, Source: target})
		return nil
	}
	for _, image := range images {
		name := unit.SpawnerName(image)
		if !on {
			file := filepath.Join(b.cfg.UnitDir, wantsDir, name)
			err := os.Remove(file)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return changes, fmt.Errorf("disable machine %q: %w", image, err)
			}
			changes = append(changes, unit.Change{Type: "unlink", File: file})
			continue
		}
		if err := link(wantsDir, name, template); err != nil {
			return changes, fmt.Errorf("enable machine %q: %w", image, err)
		}
	}
	if on {
		target := filepath.Join(filepath.Dir(template), machinesTarget)
		if err := link("multi-user.target.wants", machinesTarget, target); err != nil {
			return changes, fmt.Errorf("enable machines: %w", err)
		}
	}
	return changes, nil
}

// Enabled lists the images whose machines are to start with the host.
func (b *Backend) Enabled() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(b.cfg.UnitDir, wantsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var images []string
	for _, e := range entries {
		if image, ok := unit.SpawnedImage(e.Name()); ok && !strings.HasSuffix(e.Name(), ".new") {
			images = append(images, image)
		}
	}
	return images, err
}
