package spawn

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"machined/internal/caps"
	"machined/internal/sysctlguard"
	"machined/spawn/stage"
)

// hostCaps make the host's kernel the machine's to change, guard or not.
var hostCaps = caps.Bit(unix.CAP_SYS_MODULE) | caps.Bit(unix.CAP_SYS_RAWIO) | caps.Bit(unix.CAP_BPF)

// guardFor tells whether settings of /proc/sys that are the host's have to be kept from
// the payload, and which ones are its own. The root of a user namespace that is nobody
// on the host is refused by the kernel itself.
func guardFor(p *stage.Plan) (own sysctlguard.Own, needed bool) {
	switch {
	case p.APIVFS == "yes", p.SharePID, p.CapBounding&hostCaps != 0:
		return own, false
	case p.Userns != nil && p.Userns.Base != 0:
		return own, false
	}
	return sysctlguard.Own{
		// Who may administer the host's network has a right to its settings, and can make
		// network namespaces that work, which have settings of their own.
		Network: p.PrivateNet || p.APIVFS == "network" || p.CapBounding&caps.Bit(unix.CAP_NET_ADMIN) != 0,
		IPC:     !p.ShareIPC, UTS: !p.ShareUTS, PID: true, Users: p.Userns != nil,
	}, true
}

// loadGuard starts to load the guard, while the tree is built. The kernel may have no such
// thing, or not let us, as in a machine, where that of the machine counts: then there is none.
func (m *machine) loadGuard() {
	m.guard = func() *os.File { return nil }
	own, needed := guardFor(&m.plan)
	if !needed {
		return
	}
	m.guard = sync.OnceValue(func() *os.File {
		program, err := sysctlguard.Load(own)
		if err != nil {
			return nil
		}
		return program
	})
	go m.guard()
}

// guardSettings hangs the guard on the payload's cgroup, with which it goes.
func (m *machine) guardSettings() {
	program := m.guard()
	if program == nil {
		return
	}
	defer program.Close()
	dir, err := os.Open(m.cgroup)
	if err != nil {
		return
	}
	defer dir.Close()
	_ = sysctlguard.Attach(program, dir)
}
