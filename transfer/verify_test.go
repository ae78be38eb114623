package transfer

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

func TestCheckSignature(t *testing.T) {
	old := &packet.Config{Time: func() time.Time { return time.Now().Add(-48 * time.Hour) }, KeyLifetimeSecs: 3600}
	key, err := openpgp.NewEntity("test", "", "test@example.org", nil)
	must(t, err)
	other, err := openpgp.NewEntity("other", "", "other@example.org", nil)
	must(t, err)
	expired, err := openpgp.NewEntity("old", "", "old@example.org", old)
	must(t, err)
	ring := filepath.Join(t.TempDir(), "ring.pgp")
	var keys bytes.Buffer
	must(t, key.Serialize(&keys))
	must(t, expired.Serialize(&keys))
	must(t, os.WriteFile(ring, keys.Bytes(), 0o644))
	signed := []byte("sums\n")
	sign := func(by *openpgp.Entity, data []byte, config *packet.Config, armored bool) []byte {
		var out bytes.Buffer
		if armored {
			must(t, openpgp.ArmoredDetachSign(&out, by, bytes.NewReader(data), config))
		} else {
			must(t, openpgp.DetachSign(&out, by, bytes.NewReader(data), config))
		}
		return out.Bytes()
	}
	for _, test := range []struct {
		name      string
		rings     []string
		signature []byte
		want      string // "": good
	}{
		{"good", []string{ring}, sign(key, signed, nil, false), ""},
		{"good, armoured", []string{"/nonexistent", ring}, sign(key, signed, nil, true), ""},
		{"unknown key", []string{ring}, sign(other, signed, nil, false), "by a key that is not in the keyring"},
		{"another file", []string{ring}, sign(key, []byte("other"), nil, false), "not that of the file"},
		{"expired key", []string{ring}, sign(expired, signed, old, false), "by a key that has expired"},
		{"rubbish", []string{ring}, []byte("rubbish"), "cannot be read"},
		{"empty", []string{ring}, nil, "the signature is empty"},
		{"no keyring", []string{"/nonexistent"}, sign(key, signed, nil, false), "no keyring"},
	} {
		err := checkSignature(test.rings, signed, test.signature)
		if test.want == "" && err == nil {
			continue
		}
		if !errors.Is(err, ErrVerification) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}
