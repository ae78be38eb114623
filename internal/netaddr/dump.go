package netaddr

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

const (
	headerSize  = unix.SizeofNlMsghdr
	addressSize = unix.SizeofIfAddrmsg
	unusable    = unix.IFA_F_TENTATIVE | unix.IFA_F_DEPRECATED | unix.IFA_F_DADFAILED
)

var native = binary.NativeEndian

// dumpOnce sends RTM_GETADDR and reads the answer (rtnetlink(7)); again says
// that the answer is inconsistent.
func (e *entry) dumpOnce() (list []Address, again bool, err error) {
	request := make([]byte, headerSize+addressSize)
	native.PutUint32(request[0:], uint32(len(request)))
	native.PutUint16(request[4:], unix.RTM_GETADDR)
	native.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	native.PutUint32(request[8:], e.seq)
	if err := unix.Sendto(e.fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, false, os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, 32<<10)
	for {
		n, _, err := unix.Recvfrom(e.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, false, os.NewSyscallError("recvfrom", err)
		}
		done, interrupted, err := parse(buf[:n], e.seq, &list)
		if err != nil {
			return nil, false, err
		}
		again = again || interrupted
		if done || len(list) >= maxAddresses {
			list = list[:min(len(list), maxAddresses)]
			return list, again, nil
		}
	}
}

// parse appends the addresses of one datagram to list; messages of other
// dumps are skipped.
func parse(data []byte, seq uint32, list *[]Address) (done, interrupted bool, err error) {
	for len(data) >= headerSize {
		size := int(native.Uint32(data))
		if size < headerSize || size > len(data) {
			return false, false, unix.EBADMSG
		}
		kind, flags := native.Uint16(data[4:]), native.Uint16(data[6:])
		message := data[headerSize:size]
		if native.Uint32(data[8:]) == seq {
			interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
			switch kind {
			case unix.NLMSG_DONE:
				return true, interrupted, nil
			case unix.NLMSG_ERROR:
				if len(message) < 4 {
					return false, false, unix.EBADMSG
				}
				return false, false, unix.Errno(-int32(native.Uint32(message)))
			case unix.RTM_NEWADDR:
				if a, ok := parseAddress(message); ok {
					*list = append(*list, a)
				}
			}
		}
		data = data[min((size+3)&^3, len(data)):]
	}
	return false, interrupted, nil
}

// parseAddress reads one struct ifaddrmsg with its attributes; false for an
// address that nobody could use.
func parseAddress(message []byte) (Address, bool) {
	if len(message) < addressSize {
		return Address{}, false
	}
	family, scope := message[0], message[3]
	flags := uint32(message[2])
	a := Address{IfIndex: int(native.Uint32(message[4:])), Scope: scope}
	if scope == unix.RT_SCOPE_HOST || scope == unix.RT_SCOPE_NOWHERE {
		return a, false
	}
	var local, address netip.Addr
	for rest := message[addressSize:]; len(rest) >= unix.SizeofRtAttr; {
		size := int(native.Uint16(rest))
		if size < unix.SizeofRtAttr || size > len(rest) {
			return a, false
		}
		value := rest[unix.SizeofRtAttr:size]
		switch native.Uint16(rest[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER) {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(value)
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(value)
		case unix.IFA_FLAGS:
			if len(value) == 4 {
				flags = native.Uint32(value)
			}
		}
		rest = rest[min((size+3)&^3, len(rest)):]
	}
	// On a point-to-point link IFA_ADDRESS is the other end (rtnetlink(7)).
	a.IP = address
	if local.IsValid() {
		a.IP = local
	}
	if !a.IP.IsValid() || flags&unusable != 0 ||
		family == unix.AF_INET && !a.IP.Is4() || family == unix.AF_INET6 && !a.IP.Is6() ||
		family != unix.AF_INET && family != unix.AF_INET6 {
		return a, false
	}
	return a, true
}
