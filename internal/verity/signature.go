package verity

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"machined/internal/pkcs7"
)

// maxSignature bounds a signature, in bytes.
const maxSignature = 1 << 20

// ReadSignaturePartition reads the root hash and its signature from a partition of
// size bytes: a JSON object, filled up with zero bytes.
func ReadSignaturePartition(r io.ReaderAt, offset, size int64) (root, signature []byte, err error) {
	b := make([]byte, min(size, maxSignature))
	n, err := r.ReadAt(b, offset)
	if n < len(b) {
		return nil, nil, fmt.Errorf("read Verity signature: %w", err)
	}
	end := bytes.IndexByte(b, 0)
	if end < 0 {
		end = len(b)
	}
	var j struct {
		RootHash  string `json:"rootHash"`
		Signature []byte `json:"signature"`
	}
	if err := json.Unmarshal(b[:end], &j); err != nil {
		return nil, nil, fmt.Errorf("Verity signature partition: %w: %w", ErrCorrupt, err)
	}
	root, err = hex.DecodeString(j.RootHash)
	if err != nil || len(root) < 16 || len(j.Signature) == 0 {
		return nil, nil, fmt.Errorf("Verity signature partition: %w", ErrCorrupt)
	}
	return root, j.Signature, nil
}

// CertificateDirs is where the certificates are whose signatures count. A file hides
// those of its name in later directories (systemd.exec(5), RootHashSignature=).
var CertificateDirs = []string{"/etc/verity.d", "/run/verity.d", "/usr/local/lib/verity.d", "/usr/lib/verity.d"}

// ErrNoCertificates says that this host trusts nobody.
var ErrNoCertificates = errors.New("there are no certificates in /etc/verity.d")

// maxCertificate bounds a certificate's file, in bytes.
const maxCertificate = 1 << 20

// Trusted reads the certificates *.crt of the directories. Those that can't be read
// trust nobody; their errors are joined.
func Trusted(dirs []string) ([]*pkcs7.Certificate, error) {
	seen := map[string]bool{}
	var certs []*pkcs7.Certificate
	var all error
	for _, dir := range dirs {
		files, _ := filepath.Glob(filepath.Join(dir, "*.crt"))
		slices.Sort(files)
		for _, name := range files {
			base := filepath.Base(name)
			if seen[base] {
				continue
			}
			seen[base] = true
			if c, err := readCertificate(name); err != nil {
				all = errors.Join(all, fmt.Errorf("%s: %w", name, err))
			} else {
				certs = append(certs, c)
			}
		}
	}
	if len(certs) == 0 && all == nil {
		all = ErrNoCertificates
	}
	return certs, all
}

func readCertificate(name string) (*pkcs7.Certificate, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCertificate))
	if err != nil {
		return nil, err
	}
	return pkcs7.ParseCertificate(data)
}

// CheckSignature checks the signature of a root hash against the certificates in the
// directories. What is signed is the hash in hexadecimal digits.
func CheckSignature(root, signature []byte, dirs []string) error {
	certs, err := Trusted(dirs)
	if len(certs) == 0 {
		return err
	}
	return pkcs7.Verify(signature, []byte(hex.EncodeToString(root)), certs)
}
