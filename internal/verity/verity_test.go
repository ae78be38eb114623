package verity

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// superblock is a good one; edit changes it.
func superblock(edit func(b []byte)) []byte {
	b := make([]byte, 512)
	le := binary.LittleEndian
	copy(b, "verity")
	le.PutUint32(b[8:], 1)
	le.PutUint32(b[12:], 1)
	copy(b[32:], "sha256")
	le.PutUint32(b[64:], 4096)
	le.PutUint32(b[68:], 1024)
	le.PutUint64(b[72:], 100)
	le.PutUint16(b[80:], 4)
	copy(b[88:], "\x01\x02\x03\x04")
	if edit != nil {
		edit(b)
	}
	return b
}

func TestTable(t *testing.T) {
	t.Parallel()
	s, err := Read(bytes.NewReader(superblock(nil)), 100*4096)
	if err != nil {
		t.Fatal(err)
	}
	const want = "1 /d /h 4096 1024 100 1 sha256 abcd 01020304 2 root_hash_sig_key_desc k"
	if got := s.Table("/d", "/h", []byte{0xab, 0xcd}, "k"); got != want || s.Sectors() != 800 {
		t.Errorf("got %q, %d sectors", got, s.Sectors())
	}
	s, err = Read(bytes.NewReader(superblock(func(b []byte) { b[80] = 0 })), 100*4096)
	if err != nil || !strings.HasSuffix(s.Table("/d", "/h", []byte{1}, ""), " 01 -") {
		t.Errorf("without salt: %v, %v", s, err)
	}
}

func TestHostileSuperblocks(t *testing.T) {
	t.Parallel()
	le := binary.LittleEndian
	for name, edit := range map[string]func(b []byte){
		"magic":            func(b []byte) { b[0] = 'x' },
		"version":          func(b []byte) { b[8] = 2 },
		"format":           func(b []byte) { b[12] = 2 },
		"hash":             func(b []byte) { copy(b[32:], "sha 1 x") },
		"no hash":          func(b []byte) { clear(b[32:64]) },
		"long hash":        func(b []byte) { copy(b[32:], strings.Repeat("a", 32)) },
		"block of 0":       func(b []byte) { le.PutUint32(b[64:], 0) },
		"odd block":        func(b []byte) { le.PutUint32(b[64:], 4097) },
		"huge hash block":  func(b []byte) { le.PutUint32(b[68:], 1<<31) },
		"salt":             func(b []byte) { le.PutUint16(b[80:], 257) },
		"no data":          func(b []byte) { le.PutUint64(b[72:], 0) },
		"more than exists": func(b []byte) { le.PutUint64(b[72:], 101) },
		"overflow":         func(b []byte) { le.PutUint64(b[72:], 1<<52+1) },
	} {
		if _, err := Read(bytes.NewReader(superblock(edit)), 100*4096); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Read(strings.NewReader("verity"), 4096); err == nil {
		t.Error("short one is accepted")
	}
}

func FuzzRead(f *testing.F) {
	f.Add(superblock(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		const size = 1 << 20
		s, err := Read(bytes.NewReader(b), size)
		if err != nil {
			return
		}
		if s.Sectors() == 0 || s.Sectors() > size/512 {
			t.Errorf("%d sectors", s.Sectors())
		}
		if table := s.Table("/d", "/h", []byte{1}, ""); len(strings.Fields(table)) != 10 || strings.ContainsAny(table, "\x00\n") {
			t.Errorf("table %q", table)
		}
	})
}

func TestSignaturePartition(t *testing.T) {
	t.Parallel()
	hash := strings.Repeat("ab", 32)
	for _, c := range []struct {
		text string
		ok   bool
	}{
		{`{"rootHash":"` + hash + `","certificateFingerprint":"x","signature":"AAAA"}`, true},
		{`{"rootHash":"` + hash + `"}`, false},
		{`{"rootHash":"abcd","signature":"AAAA"}`, false},
		{`{"rootHash":"` + hash + `","signature":"!"}`, false},
		{`[]`, false},
		{``, false},
	} {
		data := append([]byte("....."+c.text), make([]byte, 4096)...)
		root, sig, err := ReadSignaturePartition(bytes.NewReader(data), 5, int64(len(data)-5))
		if (err == nil) != c.ok || c.ok && (len(root) != 32 || len(sig) != 3) {
			t.Errorf("%s: %x, %x, %v", c.text, root, sig, err)
		}
	}
}

func FuzzSignaturePartition(f *testing.F) {
	f.Add([]byte(`{"rootHash":"` + strings.Repeat("ab", 32) + `","signature":"AAAA"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		root, sig, err := ReadSignaturePartition(bytes.NewReader(b), 0, int64(len(b)))
		if err == nil && (len(root) < 16 || len(sig) == 0) {
			t.Errorf("%x, %x", root, sig)
		}
	})
}

func TestTrusted(t *testing.T) {
	t.Parallel()
	a, b := t.TempDir(), t.TempDir()
	if _, err := Trusted([]string{a, b}); !errors.Is(err, ErrNoCertificates) {
		t.Errorf("none: %v", err)
	}
	for _, name := range []string{filepath.Join(a, "bad.crt"), filepath.Join(b, "bad.crt"), filepath.Join(b, "other.txt")} {
		if err := os.WriteFile(name, []byte("garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	certs, err := Trusted([]string{a, b})
	if len(certs) != 0 || err == nil || strings.Count(err.Error(), "bad.crt") != 1 {
		t.Errorf("garbage: %v, %v", certs, err)
	}
}
