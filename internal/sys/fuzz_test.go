package sys

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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

// FuzzSender: what came beside a datagram. Control messages that hold
// descriptors are left out: they would be closed, and are not ours.
func FuzzSender(f *testing.F) {
	f.Add([]byte{28, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, oob []byte) {
		messages, err := unix.ParseSocketControlMessage(oob)
		for _, m := range messages {
			if m.Header.Type == unix.SCM_RIGHTS {
				t.Skip()
			}
		}
		pid := Sender(oob)
		if err != nil && pid != 0 {
			t.Errorf("%d sent what can't be read: %v", pid, err)
		}
	})
}
