package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// UnitTree is the processes of a unit by control group: from the service
// manager, or, on this host only, from the cgroup file system around leader.
func (b *Bus) UnitTree(ctx context.Context, unit string, leader uint32, local bool) (*CgroupNode, error) {
	var rows []struct {
		Path    string
		PID     uint32
		Command string
	}
	err := b.Call(ctx, Systemd, "GetUnitProcesses", []any{unit}, &rows)
	if err == nil {
		group, groupErr := b.controlGroup(ctx, unit)
		if groupErr != nil {
			return nil, groupErr
		}
		root := &CgroupNode{}
		for _, row := range rows {
			root.Add(strings.TrimPrefix(row.Path, strings.TrimSuffix(group, "/")), ProcessLine{row.PID, row.Command})
		}
		return root, nil
	}
	if !local || leader == 0 {
		return nil, err
	}
	dir, err := unitDirectory(unit, leader)
	if err != nil {
		return nil, err
	}
	return ReadCgroup(dir)
}

func (b *Bus) controlGroup(ctx context.Context, unit string) (string, error) {
	kind := "Service"
	switch filepath.Ext(unit) {
	case ".scope":
		kind = "Scope"
	case ".slice":
		kind = "Slice"
	}
	value, err := b.UnitProperty(ctx, unit, kind, "ControlGroup")
	if err != nil {
		return "", err
	}
	group, _ := value.(string)
	return group, nil
}

// unitDirectory finds the unit's control group on the way to that of leader.
func unitDirectory(unit string, leader uint32) (string, error) {
	root := CgroupRoot()
	if root == "" {
		return "", fmt.Errorf("find control group of %s: no cgroup v2 file system is mounted", unit)
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", leader))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		if i := strings.Index(path+"/", "/"+unit+"/"); i >= 0 {
			return filepath.Join(root, path[:i], unit), nil
		}
	}
	return "", fmt.Errorf("find control group of %s: process %d is not in it", unit, leader)
}
