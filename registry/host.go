package registry

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// hostOnce caches what can't change while the daemon runs.
type hostFacts struct {
	id       [16]byte
	bootTime time.Time
	cid      uint32
	initID   uint64 // of PID 1's pidfd; 0: the kernel has none
}

var readHost = sync.OnceValues(func() (hostFacts, error) {
	f := hostFactsOf("/")
	if init, err := sys.OpenProcess(1); err == nil {
		f.initID = init.FDID()
		init.Close()
	}
	return f, nil
})

func hostFactsOf(dir string) hostFacts {
	f := hostFacts{cid: VSockCIDAny}
	if data, err := os.ReadFile(filepath.Join(dir, "etc/machine-id")); err == nil {
		_, _ = hex.Decode(f.id[:], []byte(clipBytes(strings.TrimSpace(string(data)), 32)))
	}
	if _, err := os.Stat(filepath.Join(dir, "dev/vsock")); err == nil {
		f.cid = 1 // VMADDR_CID_LOCAL, vsock(7)
	}
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) == nil {
		f.bootTime = time.Now().Add(-time.Duration(ts.Nano())).Truncate(time.Microsecond)
	}
	return f
}

func clipBytes(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

// host is the pseudo machine that stands for the host itself.
func (r *Registry) host() Machine {
	var f hostFacts
	if r.cfg.HostDir == "/" {
		f, _ = readHost()
	} else {
		f = hostFactsOf(r.cfg.HostDir)
	}
	return Machine{
		Name:          HostName,
		ID:            f.id,
		Class:         ClassHost,
		RootDirectory: "/",
		Unit:          "-.slice",
		Leader:        Process{PID: 1, FDID: f.initID},
		Realtime:      f.bootTime,
		VSockCID:      f.cid,
		State:         stateOf(facts{host: true}),
	}
}
