package pkcs7

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// signed makes a key, a certificate and signatures with openssl.
func signed(t *testing.T, key string, options ...string) (cert, sig []byte) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "content"), []byte("abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		append(strings.Fields("req -batch -new -x509 -nodes -days 1 -subj /CN=test -keyout key -out cert -newkey"), strings.Fields(key)...),
		append(strings.Fields("smime -sign -nocerts -binary -in content -inkey key -signer cert -outform der -out sig"), options...),
	} {
		cmd := exec.Command("openssl", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v: %s", args, err, out)
		}
	}
	cert, err := os.ReadFile(filepath.Join(dir, "cert"))
	sig, err2 := os.ReadFile(filepath.Join(dir, "sig"))
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return cert, sig
}

func TestVerify(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs openssl")
	}
	other, _ := signed(t, "rsa:2048")
	stranger, err := ParseCertificate(other)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, key, options string }{
		{"rsa without attributes", "rsa:2048", "-noattr"},
		{"rsa with attributes", "rsa:2048", ""},
		{"rsa sha512", "rsa:2048", "-noattr -md sha512"},
		{"attached", "rsa:2048", "-noattr -nodetach"},
		{"p256", "ec -pkeyopt ec_paramgen_curve:P-256", "-noattr"},
		{"p384 with attributes", "ec -pkeyopt ec_paramgen_curve:P-384", "-md sha384"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			pem, sig := signed(t, c.key, strings.Fields(c.options)...)
			cert, err := ParseCertificate(pem)
			if err != nil {
				t.Fatal(err)
			}
			if err := Verify(sig, []byte("abcdef"), []*Certificate{stranger, cert}); err != nil {
				t.Errorf("good: %v", err)
			}
			if err := Verify(sig, []byte("abcdeg"), []*Certificate{cert}); !errors.Is(err, ErrInvalid) {
				t.Errorf("other content: %v", err)
			}
			if err := Verify(sig, []byte("abcdef"), []*Certificate{stranger}); !errors.Is(err, ErrUntrusted) {
				t.Errorf("stranger: %v", err)
			}
			forged := *cert
			forged.key = stranger.key
			if err := Verify(sig, []byte("abcdef"), []*Certificate{&forged}); !errors.Is(err, ErrInvalid) {
				t.Errorf("other key: %v", err)
			}
			for i := 0; i < len(sig); i += 5 {
				changed := append([]byte(nil), sig...)
				changed[i] ^= 0x10
				// Bytes that nobody signs may change, as the list of algorithms; the content may not.
				if Verify(changed, []byte("abcdeg"), []*Certificate{cert}) == nil {
					t.Fatalf("byte %d changed: other content passes", i)
				}
			}
		})
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte("0\x80"), []byte("0\x80"))
	f.Fuzz(func(t *testing.T, sig, cert []byte) {
		c, err := ParseCertificate(cert)
		var trusted []*Certificate
		if err == nil {
			trusted = append(trusted, c)
		}
		if Verify(sig, []byte("x"), trusted) == nil {
			t.Fatal("verified")
		}
	})
}
