package cgroup

import (
	"strings"
	"testing"
)

// FuzzNotify: a datagram on the readiness socket, and what came beside it.
func FuzzNotify(f *testing.F) {
	f.Add([]byte("READY=1\nSTATUS=up\nX_NSPAWN_LEADER_PID=7"), []byte{})
	f.Add([]byte("=\n\n==\nA"), []byte{28, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, message, oob []byte) {
		for key, value := range parseFields(message) {
			if strings.ContainsAny(key, "=\n") || strings.Contains(value, "\n") {
				t.Errorf("field %q is %q", key, value)
			}
		}
		if len(oob) > 16 && len(oob) < 32 && oob[12] != 1 { // descriptors (SCM_RIGHTS) would be closed, and are not ours
			_ = senderOf(oob)
		}
	})
}
