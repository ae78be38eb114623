package nss

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// operation is what a question asks for.
type operation byte

const (
	hostByName operation = iota + 1
	hostByAddress
	userByName
	userByID
	groupByName
	groupByID
)

// status heads each answer.
type status byte

const (
	found status = iota
	notFound
	unavailable
	tryAgain
)

const (
	version      = 1
	headerBytes  = 8
	addressBytes = 24
	maxName      = 96
	maxComment   = 160
	maxAddresses = 128
	maxRequest   = headerBytes + maxName
)

// request is one question.
type request struct {
	op     operation
	family byte // 0, 4 or 6
	id     uint32
	name   string     // hostByName, userByName, groupByName
	addr   netip.Addr // hostByAddress
}

// parseRequest checks and takes apart one record.
func parseRequest(data []byte) (request, error) {
	if len(data) < headerBytes || len(data) > maxRequest {
		return request{}, fmt.Errorf("parse NSS request: %d bytes, not %d to %d", len(data), headerBytes, maxRequest)
	}
	if data[0] != version {
		return request{}, fmt.Errorf("parse NSS request: version %d, not %d", data[0], version)
	}
	req := request{op: operation(data[1]), family: data[2], id: binary.LittleEndian.Uint32(data[4:])}
	payload := data[headerBytes:]
	if int(data[3]) != len(payload) {
		return request{}, fmt.Errorf("parse NSS request: %d bytes announced, %d sent", data[3], len(payload))
	}
	if req.family != 0 && req.family != 4 && req.family != 6 {
		return request{}, fmt.Errorf("parse NSS request: family %d, not 0, 4 or 6", req.family)
	}
	switch req.op {
	case hostByName, userByName, groupByName:
		if len(payload) == 0 {
			return request{}, fmt.Errorf("parse NSS request: empty name")
		}
		for _, c := range payload {
			if c <= ' ' || c >= 0x7f || c == '/' || c == ':' {
				return request{}, fmt.Errorf("parse NSS request: name has byte %#x", c)
			}
		}
		req.name = string(payload)
	case hostByAddress:
		addr, ok := netip.AddrFromSlice(payload)
		if !ok || addr.Is4() != (req.family == 4) || addr.Is6() != (req.family == 6) {
			return request{}, fmt.Errorf("parse NSS request: address of %d bytes for family %d", len(payload), req.family)
		}
		req.addr = addr
	case userByID, groupByID:
		if len(payload) != 0 {
			return request{}, fmt.Errorf("parse NSS request: %d bytes after an id", len(payload))
		}
	default:
		return request{}, fmt.Errorf("parse NSS request: operation %d", req.op)
	}
	return req, nil
}

func encodeStatus(s status) []byte {
	return []byte{version, byte(s), 0, 0, 0, 0, 0, 0}
}

// encodeHost answers with a host's addresses, at most maxAddresses of them.
func encodeHost(name string, addrs []Address) []byte {
	addrs = cut(addrs, maxAddresses)
	out := header(name, "", len(addrs), addressBytes)
	for _, a := range addrs {
		var record [addressBytes]byte
		record[0] = 6
		if a.IP.Is4() {
			record[0] = 4
		}
		binary.LittleEndian.PutUint32(record[4:], a.Scope)
		copy(record[8:], a.IP.AsSlice())
		out = append(out, record[:]...)
	}
	return out
}

// encodeEntry answers with a user or a group.
func encodeEntry(name, comment string, id, gid uint32) []byte {
	out := header(name, comment, 1, 8)
	out = binary.LittleEndian.AppendUint32(out, id)
	return binary.LittleEndian.AppendUint32(out, gid)
}

func header(name, comment string, count, width int) []byte {
	name, comment = name[:min(len(name), maxName)], comment[:min(len(comment), maxComment)]
	out := make([]byte, 0, headerBytes+len(name)+len(comment)+count*width)
	out = append(out, version, byte(found), byte(len(name)), byte(len(comment)))
	out = binary.LittleEndian.AppendUint32(out, uint32(count))
	out = append(out, name...)
	return append(out, comment...)
}
