package spawn

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"machined/spawn/settings"
)

// verity is what protects the root, or /usr, of a disk image.
type verity struct {
	designator string // root or usr
	hash       []byte // nil: nothing
	from       string // where it was found, for people
	data       string // file or device with the hashes, "" for a partition of the image
	sig        string // file with the signature, or "base64:" and it, "" for none
	embedded   []byte // signature of a partition of the image
	explicit   bool   // the hash was asked for, not found
	sigAsked   bool   // and so was the signature
}

// Bounds of what lies beside an image, in bytes.
const (
	maxHashText  = 1024
	maxSignature = 1 << 20
)

// veritySettings are the options, completed by what lies beside the image or in its
// extended attributes (systemd-nspawn(1), --root-hash=).
func (m *machine) veritySettings(image string) (verity, error) {
	o := m.opts
	v := verity{
		designator: "root", hash: o.RootHash, from: "--root-hash=", data: o.VerityData, sig: o.RootHashSig,
		explicit: o.RootHash != nil, sigAsked: o.RootHashSig != "",
	}
	if off("SYSTEMD_DISSECT_VERITY_SIDECAR") {
		return v, nil
	}
	stem := strings.TrimSuffix(image, ".raw")
	for _, side := range []struct{ designator, name string }{{"root", "roothash"}, {"usr", "usrhash"}} {
		if v.hash != nil {
			break
		}
		text, from, err := sidecarHash(image, stem, side.name)
		if err != nil {
			return v, err
		}
		if text == "" {
			continue
		}
		v.designator, v.from = side.designator, from
		if v.hash, err = hex.DecodeString(text); err != nil || len(v.hash) < 16 {
			return v, fmt.Errorf("root hash %.70q in %s is not at least 128 bits in hexadecimal digits", text, from)
		}
	}
	if v.data == "" {
		v.data = existing(stem + ".verity")
	}
	if v.sig == "" {
		v.sig = existing(stem + "." + map[string]string{"root": "roothash", "usr": "usrhash"}[v.designator] + ".p7s")
	}
	return v, nil
}

// off tells whether a switch of stock's is turned off in the environment.
func off(name string) bool {
	text, ok := os.LookupEnv(name)
	if !ok {
		return false
	}
	on, err := settings.ParseBool(text)
	return err == nil && !on
}

func existing(name string) string {
	if _, err := os.Stat(name); err != nil {
		return ""
	}
	return name
}

// sidecarHash reads a root hash of an image's extended attribute, or of the file
// beside it.
func sidecarHash(image, stem, kind string) (text, from string, err error) {
	buf := make([]byte, maxHashText)
	attr := "user.verity." + kind
	if n, err := unix.Getxattr(image, attr, buf); err == nil {
		return strings.TrimSpace(string(buf[:n])), attr, nil
	}
	name := stem + "." + kind
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return "", "", nil
	}
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	n, err := f.Read(buf)
	if n == 0 {
		return "", "", fmt.Errorf("read root hash %s: %w", name, err)
	}
	return strings.TrimSpace(string(buf[:n])), name, nil
}

// signature returns the signature of the root hash, nil where there is none.
func (v *verity) signature() ([]byte, error) {
	if text, ok := strings.CutPrefix(v.sig, "base64:"); ok {
		return base64.StdEncoding.DecodeString(text)
	}
	if v.sig == "" {
		return v.embedded, nil
	}
	f, err := os.Open(v.sig)
	if err != nil {
		return nil, fmt.Errorf("open signature of the root hash: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSignature))
	if err == nil && len(b) == 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("read signature of the root hash: %w", err)
	}
	return b, nil
}
