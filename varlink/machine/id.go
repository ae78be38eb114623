package machine

import (
	"encoding/hex"
	"os"
	"strings"
	"sync"
)

// bootID is the kernel's boot id as 32 hex digits, "" where it can't be read.
var bootID = sync.OnceValue(func() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.ReplaceAll(strings.TrimSpace(string(data)), "-", "")
})

// parseID reads a 128-bit id: 32 hex digits, with the dashes of a UUID or without.
func parseID(s string) (id [16]byte, ok bool) {
	switch len(s) {
	case 36:
		if s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
			return id, false
		}
		s = s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:]
	case 32:
	default:
		return id, false
	}
	data, err := hex.DecodeString(s)
	if err != nil {
		return id, false
	}
	return [16]byte(data), true
}

func sameID(a, b string) bool {
	x, ok := parseID(a)
	y, yes := parseID(b)
	return ok && yes && x == y
}
