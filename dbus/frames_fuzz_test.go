package dbus

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// FuzzWire: the stream that comes from the bus, whole messages and halves, cut
// into reads at any place. What is passed on is decoded as godbus does.
func FuzzWire(f *testing.F) {
	msg := godbus.Message{Type: godbus.TypeMethodCall, Body: []any{"x", uint32(7)}, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldPath:      godbus.MakeVariant(godbus.ObjectPath("/a")),
		godbus.FieldMember:    godbus.MakeVariant("M"),
		godbus.FieldSignature: godbus.MakeVariant(godbus.SignatureOf("", uint32(0))),
	}}
	var one bytes.Buffer
	if err := msg.EncodeTo(&one, binary.LittleEndian); err != nil {
		f.Fatal(err)
	}
	f.Add(one.Bytes(), 5)
	f.Add(append(bytes.Clone(one.Bytes()), one.Bytes()...), 100)
	f.Add([]byte("l\x01\x00\x01\xff\xff\xff\xff\x01\x00\x00\x00\xff\xff\xff\xff"), 16)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		if len(data) > 32<<10 { // what a socket takes at once
			return
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours := os.NewFile(uintptr(fds[0]), "ours")
		conn, err := net.FileConn(ours)
		if err != nil {
			t.Fatal(err)
		}
		_ = ours.Close()
		w := &wire{sock: conn.(*net.UnixConn), in: make([]byte, 64<<10), oob: make([]byte, unix.CmsgSpace(4*maxFDs)), frames: map[uint32]frame{}, tree: newTree()}
		w.begun.Store(true)
		defer w.Close()
		cut = min(max(cut, 0), len(data))
		for _, part := range [][]byte{data[:cut], data[cut:]} {
			if _, err := unix.Write(fds[1], part); err != nil {
				t.Fatal(err)
			}
		}
		_ = unix.Close(fds[1])
		for {
			msg, err := godbus.DecodeMessage(io.LimitReader(w, 64<<10))
			if err != nil {
				break
			}
			for _, fd := range w.attach(msg) {
				_ = unix.Close(fd)
			}
			_ = argBytes(msg.Body, maxArgs)
		}
	})
}
