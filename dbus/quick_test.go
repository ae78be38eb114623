package dbus

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	quickPath  = "/org/machined/quick"
	quickIface = "org.machined.Quick"
)

// quickTree answers Double(u number, s text) → (s text) quickly for even
// numbers, and says so; odd ones go to the handler.
func quickTree() *Tree {
	t := newTree()
	t.Add(quickPath, nil, &Interface{Name: quickIface, Methods: []Method{{
		Name: "Double", In: Args("u number", "s text"), Out: Args("s text"),
		Handler: func(_ context.Context, c *Call, _ any) ([]any, error) { return []any{"handler " + c.String(1)}, nil },
		Quick: func(q *QuickCall, b []byte) ([]byte, bool) {
			n, text := q.Uint32(), q.Bytes()
			if n%2 != 0 {
				return append(b, "rubbish"...), false
			}
			return AppendString(b, "quick "+string(text)), true
		},
	}}})
	return t
}

func encode(t testing.TB, order binary.ByteOrder, serial uint32, flags godbus.Flags, member string, args ...any) []byte {
	t.Helper()
	msg := &godbus.Message{Type: godbus.TypeMethodCall, Flags: flags, Body: args, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldPath:        godbus.MakeVariant(godbus.ObjectPath(quickPath)),
		godbus.FieldInterface:   godbus.MakeVariant(quickIface),
		godbus.FieldMember:      godbus.MakeVariant(member),
		godbus.FieldSender:      godbus.MakeVariant(":1.7"),
		godbus.FieldDestination: godbus.MakeVariant(quickIface),
	}}
	if len(args) > 0 {
		msg.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(args...))
	}
	var buf bytes.Buffer
	if err := msg.EncodeTo(&buf, order); err != nil {
		t.Fatal(err)
	}
	order.PutUint32(buf.Bytes()[8:], serial)
	return buf.Bytes()
}

func TestAnswerQuick(t *testing.T) {
	tree := quickTree()
	little := binary.LittleEndian
	for _, tc := range []struct {
		name  string
		frame []byte
		want  string // text of the reply; "" when it goes the usual way
	}{
		{"even", encode(t, little, 5, 0, "Double", uint32(2), "x"), "quick x"},
		{"empty text", encode(t, little, 5, 0, "Double", uint32(2), ""), "quick "},
		{"odd", encode(t, little, 5, 0, "Double", uint32(3), "x"), ""},
		{"other member", encode(t, little, 5, 0, "Triple", uint32(2), "x"), ""},
		{"other signature", encode(t, little, 5, 0, "Double", "x", uint32(2)), ""},
		{"no arguments", encode(t, little, 5, 0, "Double"), ""},
		{"big endian", encode(t, binary.BigEndian, 5, 0, "Double", uint32(2), "x"), ""},
		{"descriptor", encode(t, little, 5, 0, "Double", uint32(2), "x", godbus.UnixFDIndex(0)), ""},
		{"serial 0", encode(t, little, 0, 0, "Double", uint32(2), "x"), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, ok := tree.answerQuick(tc.frame, nil, 9)
			if ok != (tc.want != "") || !ok && len(out) > 0 {
				t.Fatalf("got %q, %v, want %q", out, ok, tc.want)
			}
			if !ok {
				return
			}
			msg, err := godbus.DecodeMessage(bytes.NewReader(out))
			if err != nil {
				t.Fatal(err)
			}
			if err := msg.IsValid(); err != nil {
				t.Error(err)
			}
			if got := msg.Body[0]; len(msg.Body) != 1 || got != tc.want {
				t.Errorf("got %v, want %q", msg.Body, tc.want)
			}
			if msg.Type != godbus.TypeMethodReply || msg.Serial() != 9 || header(msg, godbus.FieldDestination) != ":1.7" ||
				msg.Headers[godbus.FieldReplySerial].Value() != uint32(5) || header(msg, godbus.FieldSignature) != "s" {
				t.Errorf("header of the reply: %v", msg)
			}
		})
	}
	if out, ok := tree.answerQuick(encode(t, little, 5, godbus.FlagNoReplyExpected, "Double", uint32(2), "x"), nil, 9); !ok || len(out) != 0 {
		t.Errorf("no reply wanted: got %q, %v", out, ok)
	}
}

// TestQuickStream puts calls of both kinds into one stream, cut anywhere: each
// is answered once, those of godbus too.
func TestQuickStream(t *testing.T) {
	little := binary.LittleEndian
	var stream []byte
	want := 0
	for i := range uint32(64) {
		text := string(bytes.Repeat([]byte{'x'}, int(i)))
		if i%16 == 15 { // longer than what is answered quickly
			text = string(bytes.Repeat([]byte{'y'}, maxQuick))
		}
		stream = append(stream, encode(t, little, i+1, 0, "Double", i, text)...)
		if i%2 == 1 || i%16 == 15 {
			want++
		}
	}
	for _, step := range []int{1, 7, 16, 1000, len(stream)} {
		ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := unixConn(t, ends[0]), unixConn(t, ends[1])
		w := &wire{sock: ours, in: make([]byte, 64<<10), oob: make([]byte, 64), tree: quickTree()}
		w.begun.Store(true)
		if err := w.serve(); err != nil {
			t.Fatal(err)
		}
		replies := make(chan int, 1)
		go func() {
			n := 0
			for {
				msg, err := godbus.DecodeMessage(theirs)
				if err != nil {
					replies <- n
					return
				}
				if msg.Type == godbus.TypeMethodReply {
					n++
				}
			}
		}()
		go func() {
			for rest := stream; len(rest) > 0; {
				n := min(step, len(rest))
				if _, err := theirs.Write(rest[:n]); err != nil {
					return
				}
				rest = rest[n:]
			}
			_ = theirs.CloseWrite()
		}()
		got := 0
		for {
			msg, err := godbus.DecodeMessage(w)
			if err != nil {
				break
			}
			if n := msg.Body[0].(uint32); n%2 == 0 {
				t.Errorf("call %d came by godbus", n)
			}
			got++
		}
		if got != want {
			t.Errorf("cut into %d: godbus got %d calls, want %d", step, got, want)
		}
		_ = w.Close()
		if n := <-replies; n != 64-want {
			t.Errorf("cut into %d: got %d quick replies, want %d", step, n, 64-want)
		}
		_ = theirs.Close()
	}
}

// TestServingCloses has Close end a reader that waits in the kernel.
func TestServingCloses(t *testing.T) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := unixConn(t, ends[0]), unixConn(t, ends[1])
	defer theirs.Close()
	w := &wire{sock: ours, in: make([]byte, 64<<10), oob: make([]byte, 64), tree: newTree()}
	w.begun.Store(true)
	done := make(chan error, 1)
	go func() { // waits in the run-time first, then in the kernel
		_, err := w.Read(make([]byte, 16))
		done <- err
	}()
	if err := w.serve(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		if err == nil {
			t.Error("got no error from a closed stream")
		}
	case <-time.After(10 * time.Second):
		t.Error("the reader still waits")
	}
}

func unixConn(t *testing.T, fd int) *net.UnixConn {
	t.Helper()
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UnixConn)
}

// FuzzQuick feeds whole frames: no panic, and what is answered is a valid reply
// to a call that godbus reads the same.
func FuzzQuick(f *testing.F) {
	f.Add(encode(f, binary.LittleEndian, 5, 0, "Double", uint32(2), "x"))
	f.Add(encode(f, binary.LittleEndian, 5, 0, "Double", uint32(3), "long text"))
	f.Add(encode(f, binary.BigEndian, 5, 0, "Double", uint32(2), "x"))
	tree := quickTree()
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 16 || frameLength(frame) != len(frame) {
			return
		}
		out, ok := tree.answerQuick(frame, nil, 9)
		if !ok {
			if len(out) != 0 {
				t.Errorf("refused, and left %q", out)
			}
			return
		}
		call, err := godbus.DecodeMessage(bytes.NewReader(frame))
		if err != nil {
			return // the bus lets no such message pass
		}
		if len(out) == 0 {
			return
		}
		reply, err := godbus.DecodeMessage(bytes.NewReader(out))
		if err != nil {
			t.Fatalf("reply %q: %v", out, err)
		}
		if len(call.Body) != 2 {
			return
		}
		text, _ := call.Body[1].(string)
		text = strings.ReplaceAll(strings.ToValidUTF8(text, "?"), "\x00", "?") // the bus lets neither pass
		if reply.Body[0] != "quick "+text {
			t.Errorf("call %v, reply %v", call, reply)
		}
	})
}
