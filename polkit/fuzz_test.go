package polkit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	godbus "github.com/godbus/dbus/v5"
)

func encoded(f *testing.F, body ...any) []byte {
	f.Helper()
	msg := godbus.Message{Type: godbus.TypeMethodReply, Body: body, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldReplySerial: godbus.MakeVariant(uint32(1)),
	}}
	if len(body) > 0 {
		msg.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(body...))
	}
	var buf bytes.Buffer
	if err := msg.EncodeTo(&buf, binary.LittleEndian); err != nil {
		f.Fatal(err)
	}
	return buf.Bytes()
}

// FuzzReply: nothing but polkit's own structure that begins with a yes is one.
func FuzzReply(f *testing.F) {
	for _, r := range []result{{true, false, nil}, {false, true, map[string]string{"a": "b"}}, {false, false, nil}} {
		f.Add(encoded(f, r))
	}
	f.Add(encoded(f))
	f.Add(encoded(f, true))
	f.Add(encoded(f, "yes", true))
	f.Add(encoded(f, []bool{true, true}))
	f.Fuzz(func(t *testing.T, data []byte) {
		msg, err := godbus.DecodeMessage(bytes.NewReader(data))
		if err != nil {
			return
		}
		switch err := decide(&godbus.Call{Body: msg.Body}); {
		case err == nil:
			sig, _ := msg.Headers[godbus.FieldSignature].Value().(godbus.Signature)
			fields, ok := msg.Body[0].([]any)
			if !ok || len(fields) != 3 || fields[0] != true {
				t.Errorf("a yes out of %q: %v", sig.String(), msg.Body)
			}
		case !errors.Is(err, ErrDenied) && !errors.Is(err, ErrInteractionRequired):
			t.Errorf("neither yes nor no: %v", err)
		}
	})
}
