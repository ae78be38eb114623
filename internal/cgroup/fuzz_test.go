package cgroup

import (
	"strings"
	"testing"
)

// FuzzNotify: a datagram on the readiness socket.
func FuzzNotify(f *testing.F) {
	f.Add([]byte("READY=1\nSTATUS=up\nX_NSPAWN_LEADER_PID=7"))
	f.Add([]byte("=\n\n==\nA"))
	f.Fuzz(func(t *testing.T, message []byte) {
		for key, value := range parseFields(message) {
			if strings.ContainsAny(key, "=\n") || strings.Contains(value, "\n") {
				t.Errorf("field %q is %q", key, value)
			}
		}
	})
}
