package nsexec

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// Address is one IP address of a machine.
type Address struct {
	Family  int    // unix.AF_INET or unix.AF_INET6
	Bytes   []byte // 4 or 16
	IfIndex int    // inside the machine
	Scope   uint8  // RT_SCOPE_*, rtnetlink(7)
}

// ErrNoPrivateNetwork means that the machine shares the host's network namespace.
var ErrNoPrivateNetwork = errors.New("machine has no private network")

// Addresses returns the addresses of the machine whose leader is p. Those that
// are tentative or deprecated, and those of host scope, are left out. IPv4
// comes first, then by scope, interface and address.
func Addresses(p *sys.Process) ([]Address, error) {
	same, err := sys.SameNamespace(0, p.PID(), "net")
	if err != nil {
		return nil, err
	}
	if same {
		return nil, ErrNoPrivateNetwork
	}
	ns, err := sys.OpenNamespace(p, "net")
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	var out []Address
	err = onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("join network namespace of process %d: %w", p.PID(), os.NewSyscallError("setns", err))
		}
		var err error
		out, err = dumpAddresses()
		return err
	})
	return out, err
}

// HostAddresses returns the addresses of the host, by the same rules.
func HostAddresses() ([]Address, error) { return dumpAddresses() }

// dumpAddresses asks the network namespace of the calling thread (RTM_GETADDR).
func dumpAddresses() ([]Address, error) {
	rib, err := syscall.NetlinkRIB(unix.RTM_GETADDR, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	messages, err := syscall.ParseNetlinkMessage(rib)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return parseAddresses(messages), nil
}

func parseAddresses(messages []syscall.NetlinkMessage) []Address {
	var out []Address
	for i := range messages {
		m := &messages[i]
		if m.Header.Type != unix.RTM_NEWADDR || len(m.Data) < unix.SizeofIfAddrmsg {
			continue
		}
		family, flags, scope := int(m.Data[0]), uint32(m.Data[2]), m.Data[3]
		ifindex := int(binary.NativeEndian.Uint32(m.Data[4:8]))
		attrs, err := syscall.ParseNetlinkRouteAttr(m)
		if err != nil {
			continue
		}
		var local, address []byte
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.IFA_LOCAL:
				local = a.Value
			case unix.IFA_ADDRESS:
				address = a.Value
			case unix.IFA_FLAGS:
				if len(a.Value) >= 4 {
					flags = binary.NativeEndian.Uint32(a.Value)
				}
			}
		}
		if local != nil {
			address = local // of a point to point link, whose IFA_ADDRESS is the peer
		}
		size := map[int]int{unix.AF_INET: 4, unix.AF_INET6: 16}[family]
		skip := flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DEPRECATED) != 0 || scope >= unix.RT_SCOPE_HOST
		if size == 0 || len(address) != size || skip {
			continue
		}
		out = append(out, Address{Family: family, Bytes: bytes.Clone(address), IfIndex: ifindex, Scope: scope})
	}
	slices.SortFunc(out, func(a, b Address) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Scope, b.Scope),
			cmp.Compare(a.IfIndex, b.IfIndex), bytes.Compare(a.Bytes, b.Bytes))
	})
	return slices.CompactFunc(out, func(a, b Address) bool {
		return a.Family == b.Family && a.IfIndex == b.IfIndex && bytes.Equal(a.Bytes, b.Bytes)
	})
}
