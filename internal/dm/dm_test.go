package dm

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
)

func TestMessage(t *testing.T) {
	t.Parallel()
	b := message(flagReadOnly, Spec{Name: "n", UUID: "u", Target: "verity", Sectors: 9, Params: "1 a b"}, true)
	ne := binary.NativeEndian
	if ne.Uint32(b) != 4 || int(ne.Uint32(b[12:])) != len(b) || len(b)%8 != 0 || ne.Uint32(b[16:]) != 312 || ne.Uint32(b[20:]) != 1 || ne.Uint32(b[28:]) != 1 {
		t.Errorf("header: %x", b[:48])
	}
	for off, want := range map[int]string{48: "n\x00", 176: "u\x00", 312 + 24: "verity\x00", 312 + 40: "1 a b\x00"} {
		if got := string(b[off : off+len(want)]); got != want {
			t.Errorf("at %d: %q, want %q", off, got, want)
		}
	}
	if got := ne.Uint64(b[312+8:]); got != 9 {
		t.Errorf("sectors: %d", got)
	}
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range []Spec{
		{Name: strings.Repeat("n", 128)},
		{Name: "n", UUID: strings.Repeat("u", 129)},
		{Name: "n", Target: strings.Repeat("t", 16)},
		{Name: "n", Target: "zero", Params: "a\x00b"},
	} {
		if d, err := Create(s); err == nil {
			_ = d.Close()
			t.Errorf("%+v is accepted", s)
		}
	}
}

// TestCreate makes a device of zeros where the kernel can, and says that it can't elsewhere.
func TestCreate(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	_, before := os.Lstat(controlDir)
	d, err := Create(Spec{Name: "machined-unit-test", Target: "zero", Sectors: 8, ReadOnly: true})
	if errors.Is(err, ErrMissing) {
		if _, after := os.Lstat(controlDir); (before == nil) != (after == nil) {
			t.Errorf("%s: before %v, now %v", controlDir, before, after)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if n, err := d.File.Seek(0, 2); n != 4096 || err != nil {
		t.Errorf("size: %d, %v", n, err)
	}
}
