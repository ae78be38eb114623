package inflate

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

func pack(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, level)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func unpack(r io.Reader) ([]byte, error) {
	z, err := NewReader(r)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// samples are contents that use each kind of block and match.
func samples() map[string][]byte {
	random := make([]byte, 700_000)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	var text, skewed bytes.Buffer
	for text.Len() < 900_000 {
		text.WriteString(strings.Repeat("the quick brown fox"[rand.IntN(10):], 1+rand.IntN(3)))
		text.WriteByte(byte(rand.IntN(256)))
	}
	for skewed.Len() < 600_000 { // long codes for the rare ones
		skewed.WriteByte(byte(min(rand.ExpFloat64()*6, 255)))
	}
	far := append(bytes.Clone(random[:window-1]), random[:window+100]...)
	return map[string][]byte{
		"empty": nil, "one": {7}, "random": random, "text": text.Bytes(), "skewed": skewed.Bytes(), "far": far,
		"zeros": make([]byte, 1_000_000), "pairs": bytes.Repeat([]byte("ab"), 300_000), "triples": bytes.Repeat([]byte("abc"), 100_000),
		"sevens": bytes.Repeat([]byte("abcdefg"), 100_000),
	}
}

func TestRead(t *testing.T) {
	t.Parallel()
	for name, data := range samples() {
		for _, level := range []int{gzip.NoCompression, gzip.BestSpeed, gzip.DefaultCompression, gzip.BestCompression, gzip.HuffmanOnly} {
			packed := pack(t, data, level)
			if got, err := unpack(bytes.NewReader(packed)); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s, level %d: got %d bytes and %v, want %d", name, level, len(got), err, len(data))
			}
			if len(packed) > 20_000 {
				continue
			}
			if got, err := unpack(iotest.OneByteReader(bytes.NewReader(packed))); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s, level %d, a byte at a time: got %d bytes and %v, want %d", name, level, len(got), err, len(data))
			}
		}
	}
}

func TestMembers(t *testing.T) {
	t.Parallel()
	a, b := pack(t, []byte("first"), 6), pack(t, []byte("second"), 6)
	named := bytes.Clone(a)
	named[3] = flagName | flagComment | flagExtra | flagHCRC
	named = append(named[:10:10], append([]byte("\x02\x00xxname\x00comment\x00hc"), named[10:]...)...)
	for _, test := range []struct {
		name string
		data []byte
		want string
		err  error
	}{
		{"two", append(bytes.Clone(a), b...), "firstsecond", nil},
		{"zeros behind", append(bytes.Clone(a), make([]byte, 2000)...), "first", nil},
		{"all of a header", named, "first", nil},
		{"rubbish behind", append(bytes.Clone(a), "rubbish"...), "first", ErrFormat},
		{"rubbish behind zeros", append(bytes.Clone(a), 0, 0, 1), "first", ErrFormat},
		{"no header", []byte("rubbish, and more of it"), "", ErrFormat},
		{"nothing", nil, "", io.ErrUnexpectedEOF},
		{"no method", append([]byte{0x1f, 0x8b, 7}, a[3:]...), "", ErrFormat},
		{"reserved flag", append([]byte{0x1f, 0x8b, 8, 0x80}, a[4:]...), "", ErrFormat},
		{"checksum", append(bytes.Clone(a[:len(a)-8]), 1, 2, 3, 4, 5, 0, 0, 0), "first", ErrFormat},
		{"length", append(bytes.Clone(a[:len(a)-4]), 6, 0, 0, 0), "first", ErrFormat},
		{"second reaches into first", append(bytes.Clone(a), 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0x03, 0x02, 0x00), "first", ErrFormat},
	} {
		got, err := unpack(bytes.NewReader(test.data))
		if string(got) != test.want || !errors.Is(err, test.err) {
			t.Errorf("%s: got %q and %v, want %q and %v", test.name, got, err, test.want, test.err)
		}
	}
}

// TestCut ends a stream at each of its bytes.
func TestCut(t *testing.T) {
	t.Parallel()
	packed := pack(t, bytes.Repeat([]byte("some text, and some more"), 40), 6)
	for i := range packed {
		if got, err := unpack(bytes.NewReader(packed[:i])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d of %d: got %d bytes and %v, want %v", i, len(packed), len(got), err, io.ErrUnexpectedEOF)
		}
	}
}

// FuzzReader compares with the library: the same content, or an error on both sides.
func FuzzReader(f *testing.F) {
	for _, data := range samples() {
		f.Add(pack(f, data[:min(len(data), 3000)], 6), 3)
		f.Add(pack(f, data[:min(len(data), 300)], 1), 1000)
	}
	f.Fuzz(func(t *testing.T, data []byte, piece int) {
		got, err := unpack(&pieces{data: data, size: piece&0xffff + 1})
		lib, libErr := gzip.NewReader(bytes.NewReader(data))
		var want []byte
		if libErr == nil {
			want, libErr = io.ReadAll(lib)
		}
		if err != nil && strings.Contains(err.Error(), "flags") {
			return // reserved ones, which the library takes
		}
		if libErr == nil && (err != nil || !bytes.Equal(got, want)) {
			t.Errorf("got %d bytes and %v, want %d", len(got), err, len(want))
		}
		// The library knows neither zeros at the end nor a header's checksum.
		if libErr != nil && err == nil && !errors.Is(libErr, gzip.ErrHeader) && !errors.Is(libErr, io.ErrUnexpectedEOF) {
			t.Errorf("got %d bytes, the library says %v", len(got), libErr)
		}
	})
}

type pieces struct {
	data []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.size)], p.data)
	p.data = p.data[n:]
	return n, nil
}

func BenchmarkReader(b *testing.B) {
	for _, name := range []string{"text", "skewed", "random", "zeros"} {
		data := samples()[name]
		packed := pack(b, data, 6)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				z, err := NewReader(bytes.NewReader(packed))
				if err == nil {
					_, err = io.Copy(io.Discard, struct{ io.Reader }{z})
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
