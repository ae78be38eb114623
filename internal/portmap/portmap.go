// Package portmap makes ports of the host lead to ports of a machine: by
// destination NAT for everybody outside, and by a proxy for the host's own
// loopback addresses, which cannot be translated.
//
// The nftables tables are those that systemd-networkd and stock systemd-nspawn
// use, byte for byte, so that all of them can share them. The package makes no
// link and gives no address.
package portmap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	tableName = "io.systemd.nat"
	masqSet   = "masq_saddr"
	portMap   = "map_port_ipport"

	// one behind dstnat and srcnat
	priorityDst = -99
	prioritySrc = 101

	// registers as stock uses them
	regKey  = unix.NFT_REG32_01
	regPort = unix.NFT_REG32_02
)

// ErrPortTaken says that another machine has the port.
var ErrPortTaken = errors.New("port is mapped already")

// Port is one port of the host that leads to one of a machine.
type Port struct {
	Protocol        string // tcp or udp
	Host, Container uint16
}

func (p Port) number() (byte, error) {
	switch p.Protocol {
	case "tcp":
		return unix.IPPROTO_TCP, nil
	case "udp":
		return unix.IPPROTO_UDP, nil
	}
	return 0, fmt.Errorf("%q is not a protocol that has ports", p.Protocol)
}

// family is what differs between IPv4 and IPv6.
type family struct {
	table       nftables.TableFamily
	nat         uint32
	addrType    nftables.SetDatatype
	addrLen     uint32
	saddr       uint32 // offset in the header
	daddr       uint32
	regDataPort uint32 // where a lookup leaves the port, behind the address
}

var (
	ipv4 = family{nftables.TableFamilyIPv4, unix.NFPROTO_IPV4, nftables.TypeIPAddr, 4, 12, 16, unix.NFT_REG32_02}
	ipv6 = family{nftables.TableFamilyIPv6, unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 16, 8, 24, unix.NFT_REG32_05}
)

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// Map adds the ports for one address of the machine. It makes the table where it
// is missing. ErrPortTaken is wrapped when one of the ports is mapped already;
// then none is added.
func Map(ports []Port, to netip.Addr) error { return change(ports, to.Unmap(), true) }

// Unmap takes away what Map added. Ports that are not mapped are not an error.
func Unmap(ports []Port, to netip.Addr) error { return change(ports, to.Unmap(), false) }

func change(ports []Port, to netip.Addr, add bool) error {
	if len(ports) == 0 {
		return nil
	}
	f := familyOf(to)
	var elements []nftables.SetElement
	for _, p := range ports {
		e, err := element(p, to)
		if err != nil {
			return fmt.Errorf("map port %d: %w", p.Host, err)
		}
		elements = append(elements, e)
	}
	if !add {
		for _, e := range elements { // one by one: a missing one would keep the others
			err := apply(f, false, []nftables.SetElement{e})
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("unmap ports to %s: %w", to, err)
			}
		}
		return nil
	}
	err := apply(f, true, elements)
	if errors.Is(err, unix.ENOENT) {
		if err = create(f); err == nil {
			err = apply(f, true, elements)
		}
	}
	switch {
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.EBUSY):
		return fmt.Errorf("map ports to %s: %w", to, ErrPortTaken)
	case err != nil:
		return fmt.Errorf("map ports to %s: %w", to, err)
	}
	return nil
}

func apply(f family, add bool, elements []nftables.SetElement) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	set := f.mapSet(f.nftTable())
	if add {
		err = c.SetAddElements(set, elements)
	} else {
		err = c.SetDeleteElements(set, elements)
	}
	if err != nil {
		return err
	}
	return c.Flush()
}

// element is tcp . 8080 : 10.0.0.2 . 80; each part takes whole words.
func element(p Port, to netip.Addr) (nftables.SetElement, error) {
	proto, err := p.number()
	if err != nil {
		return nftables.SetElement{}, err
	}
	key := make([]byte, 8)
	key[0] = proto
	binary.BigEndian.PutUint16(key[4:], p.Host)
	val := append(to.AsSlice(), 0, 0, 0, 0)
	binary.BigEndian.PutUint16(val[len(val)-4:], p.Container)
	return nftables.SetElement{Key: key, Val: val}, nil
}

func (f family) nftTable() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: f.table}
}

func (f family) mapSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{
		Table: t, Name: portMap, IsMap: true, Concatenation: true,
		KeyType:  nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
		DataType: nftables.MustConcatSetType(f.addrType, nftables.TypeInetService),
	}
}

// create makes the whole table in one transaction, whatever of it is there.
func create(f family) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := c.AddTable(f.nftTable())
	masq := &nftables.Set{Table: t, Name: masqSet, KeyType: f.addrType, Interval: true}
	if err := c.AddSet(masq, nil); err != nil {
		return err
	}
	if err := c.AddSet(f.mapSet(t), nil); err != nil {
		return err
	}
	accept := nftables.ChainPolicyAccept
	chain := func(name string, hook *nftables.ChainHook, prio int32) *nftables.Chain {
		return c.AddChain(&nftables.Chain{
			Table: t, Name: name, Type: nftables.ChainTypeNAT, Hooknum: hook,
			Priority: nftables.ChainPriorityRef(nftables.ChainPriority(prio)), Policy: &accept,
		})
	}
	prerouting := chain("prerouting", nftables.ChainHookPrerouting, priorityDst)
	output := chain("output", nftables.ChainHookOutput, priorityDst)
	postrouting := chain("postrouting", nftables.ChainHookPostrouting, prioritySrc)
	c.FlushTable(t)
	c.AddRule(&nftables.Rule{Table: t, Chain: prerouting, Exprs: append([]expr.Any{
		&expr.Fib{Register: regKey, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regKey, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}, f.dnat()...)})
	c.AddRule(&nftables.Rule{Table: t, Chain: output, Exprs: append(f.notLoopback(), append([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIF, Register: regKey},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regKey, Data: binaryutil.NativeEndian.PutUint32(1)},
	}, f.dnat()...)...)})
	c.AddRule(&nftables.Rule{Table: t, Chain: postrouting, Exprs: []expr.Any{
		&expr.Payload{DestRegister: regKey, Base: expr.PayloadBaseNetworkHeader, Offset: f.saddr, Len: f.addrLen},
		&expr.Lookup{SourceRegister: regKey, SetName: masqSet},
		&expr.Masq{},
	}})
	return c.Flush()
}

func (f family) notLoopback() []expr.Any {
	out := []expr.Any{&expr.Payload{DestRegister: regKey, Base: expr.PayloadBaseNetworkHeader, Offset: f.daddr, Len: f.addrLen}}
	if f.addrLen == 4 {
		return append(out,
			&expr.Bitwise{SourceRegister: regKey, DestRegister: regKey, Len: 4, Mask: []byte{255, 0, 0, 0}, Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: regKey, Data: []byte{127, 0, 0, 0}})
	}
	loopback := netip.IPv6Loopback().As16()
	return append(out, &expr.Cmp{Op: expr.CmpOpNeq, Register: regKey, Data: loopback[:]})
}

func (f family) dnat() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regKey},
		&expr.Payload{DestRegister: regPort, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: regKey, DestRegister: regKey, IsDestRegSet: true, SetName: portMap},
		&expr.NAT{
			Type: expr.NATTypeDestNAT, Family: f.nat,
			RegAddrMin: regKey, RegAddrMax: regKey, RegProtoMin: f.regDataPort, RegProtoMax: f.regDataPort,
		},
	}
}
