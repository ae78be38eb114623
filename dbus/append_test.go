package dbus

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"reflect"
	"testing"

	godbus "github.com/godbus/dbus/v5"
)

type row struct {
	Name, Text string
	Path       godbus.ObjectPath
}

type rows []row

func (r rows) AppendDBus(b []byte) []byte {
	return AppendArray(b, len(r), func(b []byte, i int) []byte {
		return AppendString(AppendString(AppendString(b, r[i].Name), r[i].Text), string(r[i].Path))
	})
}

// TestAppended holds our encoding against that of godbus.
func TestAppended(t *testing.T) {
	for n := range 12 {
		list := make(rows, 0, n)
		for i := range n {
			list = append(list, row{fmt.Sprintf("%0*d", i, i), "ä€"[:2+3*(i%2)], godbus.ObjectPath(fmt.Sprintf("/p%d", i))})
		}
		message := func(body any) *godbus.Message {
			return &godbus.Message{Type: godbus.TypeMethodReply, Body: []any{body}, Headers: map[godbus.HeaderField]godbus.Variant{
				godbus.FieldReplySerial: godbus.MakeVariant(uint32(7)), godbus.FieldSignature: godbus.MakeVariant(godbus.SignatureOf(list)),
			}}
		}
		var want bytes.Buffer
		if err := message([]row(list)).EncodeTo(&want, binary.LittleEndian); err != nil {
			t.Fatal(err)
		}
		got := appended(message(list))
		decoded, err := godbus.DecodeMessage(bytes.NewReader(got))
		if err != nil {
			t.Fatalf("%d rows: %v", n, err)
		}
		expected, err := godbus.DecodeMessage(bytes.NewReader(want.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(decoded.Body, expected.Body) || len(got) != want.Len() {
			t.Errorf("%d rows: got %v (%d bytes), want %v (%d bytes)", n, decoded.Body, len(got), expected.Body, want.Len())
		}
	}
	if got := string(AppendString(nil, "a\x00\xff")); got != "\x03\x00\x00\x00a??\x00" {
		t.Errorf("AppendString of no text: got %q", got)
	}
}
