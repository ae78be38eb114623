package dbus

import (
	"encoding/binary"
	"unicode/utf8"
)

// A quick method is answered by the reader of the connection itself, from the
// bytes of the call to the bytes of the reply: no message is decoded, nothing
// is handed from goroutine to goroutine, and the replies of calls that came in
// together leave with one write. It is for what many ask for at once and what
// costs less than its transport. A quick method that cannot answer leaves the
// call to the method's Handler, which also words all errors.

// maxQuick is the longest call, in bytes, that may be answered quickly.
const maxQuick = 4 << 10

// QuickCall is a call that a Quick function may answer. It lasts for the call
// of the function only.
type QuickCall struct {
	args   []byte // the body, which counts its alignment from its own start
	pos    int
	broken bool
}

// Uint32 takes the next argument, which the method's signature says is u.
func (q *QuickCall) Uint32() uint32 {
	at := (q.pos + 3) &^ 3
	if at+4 > len(q.args) {
		q.broken = true
		return 0
	}
	q.pos = at + 4
	return binary.LittleEndian.Uint32(q.args[at:])
}

// Bytes takes the next argument, which the method's signature says is s. It is
// a part of the call and must not be kept.
func (q *QuickCall) Bytes() []byte {
	n := int64(q.Uint32())
	if q.broken || int64(q.pos)+n+1 > int64(len(q.args)) {
		q.broken = true
		return nil
	}
	s := q.args[q.pos : q.pos+int(n)]
	q.pos += int(n) + 1
	return s
}

// Quick answers a call by appending the body of the reply to b, in
// little-endian order; alignment counts from the length that b has when it is
// called, which is a multiple of 8. It returns false, and is taken not to have
// been there, for anything but success. It must not wait for anybody: the bus
// connection stands still meanwhile.
type Quick func(q *QuickCall, b []byte) ([]byte, bool)

// quickFrame is what is needed of the header of a method call.
type quickFrame struct {
	serial                          uint32
	noReply                         bool
	path, iface, member, sender, sg []byte
	body                            []byte
}

// Header fields of a message (D-Bus specification, "Header Fields").
const (
	fieldPath = 1 + iota
	fieldInterface
	fieldMember
	fieldErrorName
	fieldReplySerial
	fieldDestination
	fieldSender
	fieldSignature
	fieldUnixFDs
)

// frameLength is the length of the message that begins with head, its first 16
// bytes; 0 for one that is none.
func frameLength(head []byte) int {
	var order binary.ByteOrder = binary.LittleEndian
	if head[0] == 'B' {
		order = binary.BigEndian
	} else if head[0] != 'l' {
		return 0
	}
	body, fields := uint64(order.Uint32(head[4:])), uint64(order.Uint32(head[12:]))
	total := (16+fields+7)&^7 + body
	if total > 128<<20 { // the specification's limit of a message
		return 0
	}
	return int(total)
}

// parseQuick reads the header of one whole message. It reports false for
// anything but a plain little-endian method call without descriptors.
func parseQuick(frame []byte) (f quickFrame, ok bool) {
	if len(frame) < 16 || frame[0] != 'l' || frame[1] != 1 || frame[3] != 1 {
		return f, false
	}
	f.noReply = frame[2]&1 != 0
	f.serial = binary.LittleEndian.Uint32(frame[8:])
	fields := int64(binary.LittleEndian.Uint32(frame[12:]))
	body := int64(binary.LittleEndian.Uint32(frame[4:]))
	end := 16 + fields
	start := (end + 7) &^ 7
	if f.serial == 0 || start+body != int64(len(frame)) {
		return f, false
	}
	f.body = frame[start:]
	for at := 16; at < int(end); {
		at = (at + 7) &^ 7
		if at+4 > int(end) || frame[at+1] != 1 || frame[at+3] != 0 {
			return f, false // every field that a call may have has a type of one letter
		}
		code, kind := frame[at], frame[at+2]
		at += 4
		var value []byte
		switch kind {
		case 's', 'o':
			if at+4 > int(end) {
				return f, false
			}
			n := int64(binary.LittleEndian.Uint32(frame[at:]))
			if int64(at)+4+n+1 > end {
				return f, false
			}
			value = frame[at+4 : at+4+int(n)]
			at += 4 + int(n) + 1
		case 'g':
			if at >= int(end) || at+1+int(frame[at])+1 > int(end) {
				return f, false
			}
			value = frame[at+1 : at+1+int(frame[at])]
			at += 1 + len(value) + 1
		default:
			return f, false // descriptors, or what a later specification adds
		}
		switch code {
		case fieldPath:
			f.path = value
		case fieldInterface:
			f.iface = value
		case fieldMember:
			f.member = value
		case fieldSender:
			f.sender = value
		case fieldSignature:
			f.sg = value
		case fieldDestination:
		default:
			return f, false
		}
	}
	return f, len(f.member) > 0 && len(f.path) > 0 && len(f.sender) > 0 && utf8.Valid(f.sender)
}

// quickMethod is a method of an object that is always there.
type quickMethod struct {
	in, out string
	answer  Quick
}

func quickKey(path, iface, member string) string { return path + "\x00" + iface + "\x00" + member }

// addQuick needs mu. It runs before the connection serves anybody.
func (t *Tree) addQuick(path string, interfaces []*Interface) {
	for _, i := range interfaces {
		for n := range i.Methods {
			m := &i.Methods[n]
			if m.Quick == nil {
				continue
			}
			if t.quick == nil {
				t.quick = map[string]quickMethod{}
			}
			t.quick[quickKey(path, i.Name, m.Name)] = quickMethod{in: signature(m.In), out: signature(m.Out), answer: m.Quick}
		}
	}
}

// answerQuick puts the reply to the call in frame into out, which is empty and
// stays so for a call that wants none. It reports false when the call has to go
// the usual way.
func (t *Tree) answerQuick(frame, out []byte, serial uint32) ([]byte, bool) {
	f, ok := parseQuick(frame)
	if !ok {
		return out, false
	}
	key := make([]byte, 0, 256)
	key = append(append(append(append(append(key, f.path...), 0), f.iface...), 0), f.member...)
	t.mu.Lock()
	m, ok := t.quick[string(key)]
	t.mu.Unlock()
	if !ok || string(f.sg) != m.in {
		return out, false
	}
	out = appendReply(out, &f, m.out, serial)
	head := len(out)
	q := QuickCall{args: f.body}
	out, ok = m.answer(&q, out)
	if !ok || q.broken {
		return out[:0], false
	}
	if f.noReply {
		return out[:0], true
	}
	binary.LittleEndian.PutUint32(out[4:], uint32(len(out)-head))
	return out, true
}

// appendReply appends the header of a reply with an empty body; its length is a
// multiple of 8.
func appendReply(b []byte, f *quickFrame, sig string, serial uint32) []byte {
	const methodReturn, noReplyExpected, version = 2, 1, 1
	b = append(b, 'l', methodReturn, noReplyExpected, version, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, serial)
	b = append(b, 0, 0, 0, 0, fieldReplySerial, 1, 'u', 0)
	b = binary.LittleEndian.AppendUint32(b, f.serial)
	b = append(AppendPadding(b, 8), fieldDestination, 1, 's', 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.sender)))
	b = append(append(b, f.sender...), 0)
	if sig != "" {
		b = append(AppendPadding(b, 8), fieldSignature, 1, 'g', 0, byte(len(sig)))
		b = append(append(b, sig...), 0)
	}
	binary.LittleEndian.PutUint32(b[12:], uint32(len(b)-16))
	return AppendPadding(b, 8)
}
