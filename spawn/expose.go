package spawn

import (
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"machined/internal/portmap"
)

// exposure keeps the host's ports pointed at the machine's first routable
// address of each family.
type exposure struct {
	m     *machine
	ports []portmap.Port

	mu      sync.Mutex
	current [2]netip.Addr // IPv4, IPv6
}

// update follows one change of address in the machine.
func (e *exposure) update(u netlink.AddrUpdate) {
	addr, ok := netip.AddrFromSlice(u.LinkAddress.IP)
	if !ok {
		return
	}
	addr = addr.Unmap()
	if addr.IsLinkLocalUnicast() || addr.IsLoopback() || u.Scope >= unix.RT_SCOPE_LINK {
		return
	}
	if u.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DEPRECATED|unix.IFA_F_DADFAILED) != 0 {
		return
	}
	family := 0
	if addr.Is6() {
		family = 1
	}
	e.mu.Lock()
	old := e.current[family]
	e.mu.Unlock()
	switch {
	case u.NewAddr && !old.IsValid():
		if err := portmap.Map(e.ports, addr); err != nil {
			e.m.warn("Failed to expose ports at %s: %v", addr, err)
			return
		}
		e.set(family, addr)
	case !u.NewAddr && old == addr:
		_ = portmap.Unmap(e.ports, old)
		e.set(family, netip.Addr{})
	}
}

func (e *exposure) set(family int, addr netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.current[family] = addr
}

// target is where connections to the host's loopback addresses go.
func (e *exposure) target() netip.Addr {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.current[0].IsValid() {
		return e.current[0]
	}
	return e.current[1]
}

func (e *exposure) clear() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, addr := range e.current {
		if addr.IsValid() {
			_ = portmap.Unmap(e.ports, addr)
		}
	}
}
