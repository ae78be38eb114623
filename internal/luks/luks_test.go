package luks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var plenty = Limits{MemoryKiB: 64 << 10}

// TestUnlock opens what cryptsetup has made, and gets the key that it has.
func TestUnlock(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("cryptsetup"); err != nil {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs cryptsetup")
	}
	for _, c := range []struct{ name, options, table string }{
		{"luks1", "--type luks1 --pbkdf-force-iterations 1000", "aes-xts-plain64 K 0 D 4096"},
		{"luks1 essiv", "--type luks1 --pbkdf-force-iterations 1000 --cipher aes-cbc-essiv:sha256 --key-size 256 --hash sha1", "aes-cbc-essiv:sha256 K 0 D 4096"},
		{"argon2id", "--type luks2 --pbkdf argon2id --pbkdf-memory 64 --pbkdf-force-iterations 4 --pbkdf-parallel 1 --sector-size 512", "aes-xts-plain64 K 0 D 32768"},
		{"argon2i", "--type luks2 --pbkdf argon2i --pbkdf-memory 128 --pbkdf-force-iterations 4 --pbkdf-parallel 4 --sector-size 4096", "aes-xts-plain64 K 0 D 32768 1 sector_size:4096"},
		{"pbkdf2", "--type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --hash sha512 --key-size 256 --sector-size 512", "aes-xts-plain64 K 0 D 32768"},
		{"key slot of another cipher", "--type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --sector-size 512 --keyslot-cipher aes-cbc-plain64 --keyslot-key-size 256", "aes-xts-plain64 K 0 D 32768"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			img := filepath.Join(t.TempDir(), "img")
			if err := os.WriteFile(img, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(img, 20<<20); err != nil {
				t.Fatal(err)
			}
			run := func(args ...string) string {
				cmd := exec.Command("cryptsetup", append(args, "-q", "--key-file=-", img)...)
				cmd.Stdin = strings.NewReader("secret")
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("cryptsetup %v: %v: %s", args, err, out)
				}
				return string(out)
			}
			run(append([]string{"luksFormat"}, strings.Fields(c.options)...)...)
			dump := run("luksDump", "--dump-volume-key")
			_, dump, _ = strings.Cut(dump, "MK dump:")
			want := strings.Join(regexp.MustCompile(`\b[0-9a-f]{2}\b`).FindAllString(dump, -1), "")
			f, err := os.Open(img)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			h, err := Read(f, 20<<20)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := h.Unlock(t.Context(), f, []byte("secret\n"), plenty); !errors.Is(err, ErrPassphrase) {
				t.Errorf("wrong passphrase: %v", err)
			}
			v, err := h.Unlock(t.Context(), f, []byte("secret"), plenty)
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(v.Key); got != want {
				t.Errorf("key %s, want %s", got, want)
			}
			if got := v.Table("D", "K"); got != c.table {
				t.Errorf("table %q, want %q", got, c.table)
			}
			if got := int64(v.Sectors())*512 + v.Offset; got != 20<<20 {
				t.Errorf("data ends at %d", got)
			}
		})
	}
}

func TestMergeIsAllStripes(t *testing.T) {
	t.Parallel()
	split := make([]byte, 5*40)
	for i := range split {
		split[i] = byte(i * 7)
	}
	first, err := merge(split, 40, 5, "sha1")
	if err != nil {
		t.Fatal(err)
	}
	for n := range 5 {
		changed := bytes.Clone(split)
		changed[n*40+3] ^= 1
		if second, _ := merge(changed, 40, 5, "sha1"); bytes.Equal(first, second) {
			t.Errorf("stripe %d does not count", n)
		}
	}
}

// header2 is a LUKS2 header around a JSON area.
func header2(t testing.TB, js string) []byte {
	t.Helper()
	const length = 16384
	b := make([]byte, 1<<20)
	put := func(at int, magic string, seq uint64) {
		c := b[at : at+length]
		copy(c, magic)
		be := binary.BigEndian
		be.PutUint16(c[6:], 2)
		be.PutUint64(c[8:], length)
		be.PutUint64(c[16:], seq)
		copy(c[72:], "sha256")
		copy(c[168:], "01234567-89ab-cdef-0123-456789abcdef")
		be.PutUint64(c[256:], uint64(at))
		if copy(c[4096:], js) < len(js) {
			t.Fatal("JSON is too long")
		}
		sum := sha256.Sum256(c)
		copy(c[448:], sum[:])
	}
	put(0, Magic, 1)
	put(length, magic2, 1)
	return b
}

// good is a JSON area; edits replace text in it.
func good(edits ...string) string {
	salt := base64.StdEncoding.EncodeToString(make([]byte, 32))
	js := fmt.Sprintf(`{"keyslots":{"0":{"type":"luks2","key_size":32,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},
"area":{"type":"raw","offset":"32768","size":"131072","encryption":"aes-xts-plain64","key_size":32},
"kdf":{"type":"argon2id","time":4,"memory":64,"cpus":1,"salt":%[1]q}}},"tokens":{},
"segments":{"0":{"type":"crypt","offset":"524288","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512}},
"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":1000,"salt":%[1]q,"digest":%[1]q}},
"config":{"json_size":"12288","keyslots_size":"262144"}}`, salt)
	return strings.NewReplacer(edits...).Replace(js)
}

func TestHostileHeaders(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		edits []string
		want  error
	}{
		{"good", nil, nil},
		{"no JSON", []string{`{"keyslots"`, `["keyslots"`}, ErrCorrupt},
		{"number for text", []string{`"offset":"32768"`, `"offset":32768`}, ErrCorrupt},
		{"negative offset", []string{`"32768"`, `"-1"`}, ErrCorrupt},
		{"area over the header", []string{`"32768"`, `"4096"`}, ErrCorrupt},
		{"area behind the end", []string{`"32768"`, `"1048064"`}, ErrCorrupt},
		{"huge offset", []string{`"32768"`, `"9223372036854775296"`}, ErrCorrupt},
		{"area too small", []string{`"131072"`, `"100000"`}, ErrCorrupt},
		{"huge key", []string{`"key_size":32,"af"`, `"key_size":1000000000,"af"`}, ErrCorrupt},
		{"negative key", []string{`"key_size":32`, `"key_size":-32`}, ErrCorrupt},
		{"huge number of stripes", []string{`4000`, `1000000000`}, ErrCorrupt},
		{"no stripes", []string{`4000`, `0`}, ErrCorrupt},
		{"memory", []string{`"memory":64`, `"memory":4294967295`}, ErrCost},
		{"time", []string{`"time":4`, `"time":4294967295`}, ErrCost},
		{"threads", []string{`"cpus":1`, `"cpus":100`, `"memory":64`, `"memory":6400`}, ErrCost},
		{"no time", []string{`"time":4`, `"time":0`}, ErrCorrupt},
		{"iterations", []string{`"iterations":1000`, `"iterations":4294967295`}, ErrCost},
		{"hash", []string{`"hash":"sha256","iterations"`, `"hash":"md5","iterations"`}, ErrUnsupported},
		{"kdf", []string{`argon2id`, `scrypt`}, ErrUnsupported},
		{"data behind the end", []string{`"524288"`, `"1048576"`}, ErrCorrupt},
		{"odd data", []string{`"524288"`, `"524289"`}, ErrCorrupt},
		{"size of data", []string{`"dynamic"`, `"9223372036854775296"`}, ErrCorrupt},
		{"sector size", []string{`"sector_size":512`, `"sector_size":0`}, ErrCorrupt},
		{"blank in cipher", []string{`"encryption":"aes-xts-plain64","sector`, `"encryption":"aes xts","sector`}, ErrCorrupt},
		{"integrity", []string{`"sector_size"`, `"integrity":{"type":"hmac"},"sector_size"`}, ErrUnsupported},
		{"two segments", []string{`"segments":{`, `"segments":{"1":{},`}, ErrUnsupported},
		{"requirement", []string{`"config":{`, `"config":{"requirements":{"mandatory":["online-reencrypt"]},`}, ErrUnsupported},
		{"short digest", []string{`"digest":"AAAA`, `"digest":"AAAA","x":"`}, ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := header2(t, good(c.edits...))
			_, err := Read(bytes.NewReader(b), int64(len(b)))
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	b := header2(t, good())
	b[5000] ^= 1 // the second copy is as good
	if _, err := Read(bytes.NewReader(b), int64(len(b))); err != nil {
		t.Errorf("first copy broken: %v", err)
	}
	b[16384+5000] ^= 1
	if _, err := Read(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("both copies broken: %v", err)
	}
	h, err := Read(bytes.NewReader(header2(t, good())), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Unlock(t.Context(), bytes.NewReader(header2(t, good())), []byte("x"), Limits{MemoryKiB: 63}); !errors.Is(err, ErrCost) {
		t.Errorf("little memory: %v", err)
	}
	if _, err := h.Unlock(t.Context(), bytes.NewReader(header2(t, good())), []byte("x"), plenty); !errors.Is(err, ErrPassphrase) {
		t.Errorf("passphrase: %v", err)
	}
}

// FuzzRead reads headers, with the checksums put right, and opens those that are cheap.
func FuzzRead(f *testing.F) {
	f.Add([]byte(good()), true)
	f.Add([]byte(good("argon2id", "pbkdf2")), true)
	f.Add([]byte(good("dynamic", "512", "aes-xts-plain64", "aes-cbc-essiv:sha256")), true)
	luks1 := make([]byte, 4096)
	copy(luks1, Magic+"\x00\x01aes")
	copy(luks1[40:], "cbc-plain")
	copy(luks1[72:], "sha1")
	binary.BigEndian.PutUint32(luks1[104:], 4)
	binary.BigEndian.PutUint32(luks1[108:], 16)
	binary.BigEndian.PutUint32(luks1[164:], 1)
	for i, n := range []uint32{slot1Active, 1} {
		binary.BigEndian.PutUint32(luks1[208+4*i:], n)
	}
	binary.BigEndian.PutUint32(luks1[208+40:], 2)
	binary.BigEndian.PutUint32(luks1[208+44:], 5)
	f.Add(luks1, false)
	f.Fuzz(func(t *testing.T, data []byte, isJSON bool) {
		if isJSON {
			if len(data) > 12000 {
				return
			}
			data = header2(t, string(data))
		}
		r := bytes.NewReader(data)
		h, err := Read(r, int64(len(data)))
		if err != nil {
			return
		}
		if strings.ContainsAny(h.data.Cipher, " \n\x00") || h.data.Offset+h.data.Size > int64(len(data)) {
			t.Fatalf("volume %+v of %d bytes", h.data, len(data))
		}
		for _, s := range h.slots {
			if s.kdf.iterations > 2000 || s.kdf.time*s.kdf.memoryKiB > 4096 || s.digest.kdf.iterations > 2000 {
				return
			}
		}
		if _, err := h.Unlock(context.Background(), r, []byte("x"), Limits{MemoryKiB: 1024}); err == nil {
			t.Fatal("opened")
		}
	})
}
