package spawn

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"machined/spawn/settings"
)

// verity is what protects the root of a disk image.
type verity struct {
	hash []byte // nil: nothing
	from string // where it was found, for people
	data string // file or device with the hashes, "" for a partition of the image
	sig  string // file with the signature, or "base64:" and it, "" for none
}

// maxHashText bounds a root hash in hexadecimal digits.
const maxHashText = 1024

// veritySettings are the options, completed by what lies beside the image or in its
// extended attributes (systemd-nspawn(1), --root-hash=).
func (m *machine) veritySettings() (verity, error) {
	o := m.opts
	v := verity{hash: o.RootHash, from: "--root-hash=", data: o.VerityData, sig: o.RootHashSig}
	if text, ok := os.LookupEnv("SYSTEMD_DISSECT_VERITY_SIDECAR"); ok {
		if on, err := settings.ParseBool(text); err == nil && !on {
			return v, nil
		}
	}
	stem := strings.TrimSuffix(m.root, ".raw")
	if v.hash == nil {
		text, from, err := sidecarHash(m.root, stem)
		if err != nil {
			return v, err
		}
		if text != "" {
			v.from = from
			if v.hash, err = hex.DecodeString(text); err != nil || len(v.hash) < 16 {
				return v, fmt.Errorf("root hash %.70q in %s is not at least 128 bits in hexadecimal digits", text, from)
			}
		}
	}
	if v.data == "" {
		v.data = existing(stem + ".verity")
	}
	if v.sig == "" {
		v.sig = existing(stem + ".roothash.p7s")
	}
	return v, nil
}

func existing(name string) string {
	if _, err := os.Stat(name); err != nil {
		return ""
	}
	return name
}

// sidecarHash reads the root hash of an image's extended attribute, or of the file
// beside it.
func sidecarHash(image, stem string) (text, from string, err error) {
	buf := make([]byte, maxHashText)
	const attr = "user.verity.roothash"
	if n, err := unix.Getxattr(image, attr, buf); err == nil {
		return strings.TrimSpace(string(buf[:n])), attr, nil
	}
	name := stem + ".roothash"
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
