//go:build integration

package bench

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// watchMemory looks at the memory of a unit's processes until the function that it
// returns is called, which returns the most that there was, in KiB. Pages that
// several processes share count once (PSS).
func watchMemory(unit string) func() int64 {
	if unit == "" {
		return func() int64 { return 0 }
	}
	stop, peak := make(chan struct{}), make(chan int64)
	go func() {
		most := int64(0)
		for {
			most = max(most, unitMemory(unit))
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return func() int64 {
		close(stop)
		return <-peak
	}
}

// unitMemory is the PSS of all processes of a unit, in KiB (proc_pid_smaps(5)).
func unitMemory(unit string) int64 {
	total := int64(0)
	pids, _ := os.ReadFile(filepath.Join("/sys/fs/cgroup", unit, "cgroup.procs"))
	for pid := range bytes.FieldsSeq(pids) {
		text, _ := os.ReadFile("/proc/" + string(pid) + "/smaps_rollup") // it may be gone
		for line := range strings.Lines(string(text)) {
			words := strings.Fields(line)
			if len(words) > 1 && words[0] == "Pss:" {
				kib, _ := strconv.ParseInt(words[1], 10, 64)
				total += kib
			}
		}
	}
	return total
}
