package dbus

import (
	"bytes"
	"encoding/binary"
	"strings"

	godbus "github.com/godbus/dbus/v5"
)

// Appender is a value that writes itself in the D-Bus format, for large replies:
// godbus goes through reflection for every field. It must be the only value of
// a message, and its Go type must give the right signature.
type Appender interface {
	// AppendDBus appends the value in little-endian order. b ends at a multiple
	// of 8 bytes, and alignment counts from its start.
	AppendDBus(b []byte) []byte
}

// AppendString appends a string or an object path. What D-Bus does not carry,
// NUL and bytes that are no UTF-8, becomes "?".
func AppendString(b []byte, s string) []byte {
	s = strings.ToValidUTF8(s, "?")
	if strings.IndexByte(s, 0) >= 0 {
		s = strings.ReplaceAll(s, "\x00", "?")
	}
	b = AppendPadding(b, 4)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
	b = append(b, s...)
	return append(b, 0)
}

// AppendPadding aligns the end of b to n bytes.
func AppendPadding(b []byte, n int) []byte {
	for len(b)%n != 0 {
		b = append(b, 0)
	}
	return b
}

// AppendArray appends an array of structs: f appends one of n.
func AppendArray(b []byte, n int, f func(b []byte, i int) []byte) []byte {
	b = AppendPadding(b, 4)
	size := len(b)
	b = AppendPadding(append(b, 0, 0, 0, 0), 8)
	start := len(b)
	for i := range n {
		b = f(AppendPadding(b, 8), i)
	}
	binary.LittleEndian.PutUint32(b[size:], uint32(len(b)-start))
	return b
}

// appended encodes a message whose value is an Appender; nil if it is not.
func appended(msg *godbus.Message) []byte {
	if len(msg.Body) != 1 {
		return nil
	}
	value, ok := msg.Body[0].(Appender)
	if !ok {
		return nil
	}
	body := msg.Body
	msg.Body = nil
	var buf bytes.Buffer
	err := msg.EncodeTo(&buf, binary.LittleEndian)
	msg.Body = body
	if err != nil {
		return nil // godbus meets the same error and reports it
	}
	head := buf.Len() // a multiple of 8: D-Bus specification, "Message Format"
	data := value.AppendDBus(buf.Bytes())
	binary.LittleEndian.PutUint32(data[4:], uint32(len(data)-head))
	return data
}
