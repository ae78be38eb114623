package transfer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
)

// defaultKeyrings are the keyrings of the host; the first that exists is used.
func defaultKeyrings() []string {
	if path := os.Getenv("SYSTEMD_OPENPGP_KEYRING"); path != "" {
		return []string{path}
	}
	return []string{
		"/etc/systemd/import-pubring.pgp", "/etc/systemd/import-pubring.gpg",
		"/usr/lib/systemd/import-pubring.pgp", "/usr/lib/systemd/import-pubring.gpg",
	}
}

// sumsFile is the checksum file for all images in one place.
const sumsFile = "SHA256SUMS"

// checksums is what a checksum file says: SHA256 by file name.
type checksums map[string][sha256.Size]byte

// parseChecksums reads the output of sha256sum(1). Lines of another format, as
// those of other sums, are left out; a file that has no others is an error.
func parseChecksums(data []byte) (checksums, error) {
	sums := checksums{}
	malformed := 0
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSuffix(lines.Text(), "\r")
		if line == "" || line[0] == '#' {
			continue
		}
		var sum [sha256.Size]byte
		if len(line) < 2*sha256.Size+2 || line[2*sha256.Size] != ' ' {
			malformed = n
			continue
		}
		if _, err := hex.Decode(sum[:], []byte(line[:2*sha256.Size])); err != nil {
			malformed = n
			continue
		}
		name := line[2*sha256.Size+1:]
		if name[0] == ' ' || name[0] == '*' { // one space only on linuxcontainers.org
			name = name[1:]
		}
		name = strings.TrimPrefix(name, "./")
		if old, ok := sums[name]; ok && old != sum {
			return nil, fmt.Errorf("%w: the checksum file has two sums for %q", ErrVerification, name)
		}
		sums[name] = sum
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%w: checksum file: %w", ErrVerification, err)
	}
	if len(sums) == 0 && malformed > 0 {
		return nil, fmt.Errorf("%w: line %d of the checksum file is malformed", ErrVerification, malformed)
	}
	return sums, nil
}

// check compares the sum of a file with what the checksum file says.
func (c checksums) check(name string, sum [sha256.Size]byte) error {
	want, ok := c[name]
	if !ok {
		return fmt.Errorf("%w: the checksum file has no entry for %q", ErrVerification, name)
	}
	if want != sum {
		return fmt.Errorf("%w: SHA256 checksum of %q is %x, the checksum file says %x", ErrVerification, name, sum, want)
	}
	return nil
}

// fetchChecksums fetches the checksum file for a URL and, where that is asked
// for, checks its signature. It returns nil when nothing is to be verified.
func (e *engine) fetchChecksums(ctx context.Context, c *client, name string) (checksums, error) {
	if e.Checksum != nil {
		return e.literal(name), nil
	}
	if e.Verify == VerifyNo {
		return nil, nil
	}
	var data []byte
	var used string
	for _, file := range []string{name + ".sha256", sumsFile} {
		u, err := beside(e.Remote, file)
		if err != nil {
			return nil, err
		}
		data, err = e.fetchSmall(ctx, c, u)
		if err == nil {
			used = file
			break
		}
		if !refused(err) {
			return nil, err
		}
	}
	if used == "" {
		return nil, fmt.Errorf("%w: no checksum file beside %s", ErrVerification, e.Remote)
	}
	if e.Verify == VerifySignature {
		if err := e.fetchSignature(ctx, c, used, data); err != nil {
			return nil, err
		}
	}
	if sum := strings.TrimSpace(string(data)); used != sumsFile && len(sum) == 2*sha256.Size && !strings.ContainsAny(sum, " \t\n") {
		data = []byte(sum + "  " + name + "\n") // the sum alone is enough in a file for one image
	}
	sums, err := parseChecksums(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", used, err)
	}
	return sums, nil
}

// literal is the list that has only the checksum that the request names.
func (e *engine) literal(name string) checksums {
	return checksums{name: [sha256.Size]byte(e.Checksum)}
}

// isChecksumFile says whether a file on a server is one that lists checksums.
func isChecksumFile(name string) bool {
	return name == sumsFile || strings.HasSuffix(name, ".sha256")
}

func (e *engine) fetchSignature(ctx context.Context, c *client, name string, signed []byte) error {
	suffixes := []string{".asc", ".gpg", ".sig"}
	if name == sumsFile {
		suffixes = []string{".gpg", ".asc", ".sig"}
	}
	for _, suffix := range suffixes {
		u, err := beside(e.Remote, name+suffix)
		if err != nil {
			return err
		}
		signature, err := e.fetchSmall(ctx, c, u)
		if refused(err) {
			continue
		}
		if err != nil {
			return err
		}
		if err := checkSignature(e.Keyrings, signed, signature); err != nil {
			return fmt.Errorf("%s: %w", name+suffix, err)
		}
		e.logf(Info, "Signature verification succeeded.")
		return nil
	}
	return fmt.Errorf("%w: no signature for %q beside %s", ErrVerification, name, e.Remote)
}

// checkSignature checks a detached signature, armoured or not, by the keys in
// the first keyring that exists.
func checkSignature(keyrings []string, signed, signature []byte) error {
	if keyrings == nil {
		keyrings = defaultKeyrings()
	}
	keys, err := loadKeyring(keyrings)
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(signature)) == 0 {
		return fmt.Errorf("%w: the signature is empty", ErrVerification)
	}
	if bytes.HasPrefix(bytes.TrimSpace(signature), []byte("-----BEGIN")) {
		_, err = openpgp.CheckArmoredDetachedSignature(keys, bytes.NewReader(signed), bytes.NewReader(signature), nil)
	} else {
		_, err = openpgp.CheckDetachedSignature(keys, bytes.NewReader(signed), bytes.NewReader(signature), nil)
	}
	if err != nil {
		return &worded{ErrVerification.Error() + ": " + signatureFault(err), errors.Join(ErrVerification, err)}
	}
	return nil
}

// signatureFault is what is wrong with a signature, in words for who has to decide
// whether to trust the image.
func signatureFault(err error) string {
	var mismatch pgperrors.SignatureError
	switch {
	case errors.Is(err, pgperrors.ErrUnknownIssuer):
		return "the signature is by a key that is not in the keyring"
	case errors.Is(err, pgperrors.ErrKeyExpired):
		return "the signature is by a key that has expired"
	case errors.Is(err, pgperrors.ErrKeyRevoked):
		return "the signature is by a key that has been revoked"
	case errors.Is(err, pgperrors.ErrSignatureExpired):
		return "the signature has expired"
	case errors.As(err, &mismatch):
		return "the signature is not that of the file (" + string(mismatch) + ")"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the signature is cut off"
	}
	return "the signature cannot be read: " + strings.TrimPrefix(err.Error(), "openpgp: ")
}

func loadKeyring(paths []string) (openpgp.EntityList, error) {
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%w: keyring: %w", ErrVerification, err)
		}
		var keys openpgp.EntityList
		if bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN")) {
			keys, err = openpgp.ReadArmoredKeyRing(bytes.NewReader(data))
		} else {
			keys, err = openpgp.ReadKeyRing(bytes.NewReader(data))
		}
		if err != nil {
			return nil, fmt.Errorf("%w: keyring %q: %w", ErrVerification, path, err)
		}
		return keys, nil
	}
	return nil, fmt.Errorf("%w: no keyring: none of %s exists", ErrVerification, strings.Join(paths, ", "))
}
