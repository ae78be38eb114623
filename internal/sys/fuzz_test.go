package sys

import (
	"strings"
	"testing"
)

// FuzzProcFiles: what /proc tells of a process, whose name, cgroup and IDs are
// the choice of whoever runs it.
func FuzzProcFiles(f *testing.F) {
	f.Add([]byte("1 (systemd) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9 10 11"))
	f.Add([]byte("7 (a) b) (c\n) R 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 10 11"))
	f.Add([]byte("Name:\tx\nUid:\t0\t1000\t0\t0\n"))
	f.Add([]byte("12:pids:/x\n1:name=systemd:/y\n0::/machine.slice/a.scope (deleted)\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if fields, err := parseStat(data, 1); err == nil && len(fields) < 20 {
			t.Errorf("stat: only %d fields", len(fields))
		}
		if _, err := parseUID(data, 1); err == nil && !strings.Contains(string(data), "Uid:") {
			t.Error("status: a user from nowhere")
		}
		if path, err := parseCgroup(string(data), 1); err == nil && strings.Contains(path, "\n") {
			t.Errorf("cgroup: %q", path)
		}
	})
}
