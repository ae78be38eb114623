// Package netname derives the names and hardware addresses of a machine's
// network links, the same ones as systemd-nspawn does, so that networkd's rules
// match and DHCP leases survive a change of spawner.
//
// It computes; it never touches a link.
package netname

import (
	"encoding/binary"
	"net"

	"github.com/dchest/siphash"
	"golang.org/x/sys/unix"
)

// maxName is how long a link's name may be.
const maxName = unix.IFNAMSIZ - 1

// Key says which end of which kind of link an address is for.
type Key [16]byte

// The keys (constants of systemd's ABI).
var (
	KeyHost           = Key{0x1a, 0x37, 0x6f, 0xc7, 0x46, 0xec, 0x45, 0x0b, 0xad, 0xa3, 0xd5, 0x31, 0x06, 0x60, 0x5d, 0xb1}
	KeyContainer      = Key{0xc3, 0xc4, 0xf9, 0x19, 0xb5, 0x57, 0xb2, 0x1c, 0xe6, 0xcf, 0x14, 0x27, 0x03, 0x9c, 0xee, 0xa2}
	KeyExtraHost      = Key{0x48, 0xc7, 0xf6, 0xb7, 0xea, 0x9d, 0x4c, 0x9e, 0xb7, 0x28, 0xd4, 0xde, 0x91, 0xd5, 0xbf, 0x66}
	KeyExtraContainer = Key{0xaf, 0x50, 0x17, 0x61, 0xce, 0xf9, 0x4d, 0x35, 0x84, 0x0d, 0x2b, 0x20, 0x54, 0xbe, 0xce, 0x59}
	KeyMACVLAN        = Key{0x00, 0x13, 0x6d, 0xbc, 0x66, 0x83, 0x44, 0x81, 0xbb, 0x0c, 0xf9, 0x51, 0x1f, 0x24, 0xa6, 0x6f}

	shortenKey = Key{0xe1, 0x90, 0xa4, 0x04, 0xa8, 0xef, 0x4b, 0x51, 0x8c, 0xcc, 0xc3, 0x3a, 0x9f, 0x11, 0xfc, 0xa2}
)

// ContainerVeth is the name of the machine's end of its main link.
const ContainerVeth = "host0"

// MAC returns the address of the idx-th link (from 0) of a kind. HostID is the
// host's machine-id(5).
func MAC(hostID [16]byte, machine string, key Key, idx uint64) net.HardwareAddr {
	data := append(hostID[:len(hostID):len(hostID)], machine...)
	if idx > 0 {
		data = binary.LittleEndian.AppendUint64(data, idx)
	}
	var sum [8]byte
	binary.LittleEndian.PutUint64(sum[:], hash(key, data))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&0xfe | 0x02 // unicast, locally administered
	return mac
}

// HostVeth returns the name of the host's end of a machine's main link, and its
// alternative name, "" when the name did not have to be shortened. Bridge says
// that the end is a port of a bridge or zone.
func HostVeth(machine string, bridge bool) (ifname, altname string) {
	if bridge {
		return shorten("vb-" + machine)
	}
	return shorten("ve-" + machine)
}

// Zone returns the name of a zone's bridge. A zone name that does not fit is
// refused by ValidZone; names of bridges are never shortened.
func Zone(zone string) string { return "vz-" + zone }

// ValidZone tells whether zone can be part of a bridge name.
func ValidZone(zone string) bool { return zone != "" && ValidIfname(Zone(zone)) }

// MACVLAN returns the name of the link that hangs on the host's link parent, and
// its alternative name.
func MACVLAN(parent string) (ifname, altname string) { return shorten("mv-" + parent) }

// IPVLAN is MACVLAN for ipvlan links.
func IPVLAN(parent string) (ifname, altname string) { return shorten("iv-" + parent) }

// shorten makes a name fit: its first 11 bytes and four digits of a hash of the
// whole.
func shorten(name string) (ifname, altname string) {
	if len(name) <= maxName {
		return name, ""
	}
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	h := hash(shortenKey, []byte(name))
	short := []byte(name[:maxName])
	for i := range 4 {
		short[maxName-1-i] = digits[h&63]
		h >>= 6
	}
	return string(short), name
}

// ValidIfname tells whether the kernel and systemd take name as a link's name.
func ValidIfname(name string) bool { return validName(name, maxName) }

// ValidAltname tells whether name can be an alternative name.
func ValidAltname(name string) bool { return validName(name, 127) }

func validName(name string, limit int) bool {
	if name == "" || len(name) > limit || name == "." || name == ".." || name == "all" || name == "default" {
		return false
	}
	numeric := true
	for i := range len(name) {
		c := name[i]
		if c <= ' ' || c >= 127 || c == ':' || c == '/' || c == '%' {
			return false
		}
		numeric = numeric && c >= '0' && c <= '9'
	}
	return !numeric // would be taken for an index
}

func hash(key Key, data []byte) uint64 {
	return siphash.Hash(binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:]), data)
}
