package host

import (
	"os"
	"strconv"
	"strings"
	"sync"
)

// inotifyInstances is how many hosts, and machines in them, may need together.
const inotifyInstances = 4096

// raiseLimits lifts a limit of this machine's that all hosts share, and that is
// made for one: without inotify instances a systemd does not start
// (proc_sys_fs(5), inotify).
var raiseLimits = sync.OnceFunc(func() {
	const name = "/proc/sys/fs/inotify/max_user_instances"
	data, err := os.ReadFile(name)
	if err != nil {
		return
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && n < inotifyInstances {
		_ = os.WriteFile(name, []byte(strconv.Itoa(inotifyInstances)), 0)
	}
})
