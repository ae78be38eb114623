package transfer

import (
	"encoding/binary"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/dchest/siphash"
)

// escapeName makes a part of a file name out of a URL or an ETag.
func escapeName(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c < 0x20 || c >= 127 || strings.IndexByte("/.#\"'\\", c) >= 0 {
			fmt.Fprintf(&b, "\\x%02x", c)
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

// unescapeName is the inverse of escapeName.
func unescapeName(s string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		var c byte
		if i+4 > len(s) || s[i+1] != 'x' {
			return "", false
		}
		if _, err := fmt.Sscanf(s[i+2:i+4], "%02x", &c); err != nil {
			return "", false
		}
		b.WriteByte(c)
		i += 3
	}
	return b.String(), true
}

// downloadMax is the longest path of a hidden download, in bytes.
const downloadMax = 240

// downloadName is the file name of the hidden download of a URL, without suffix.
func downloadName(root, prefix, rawURL, etag, suffix string) string {
	tail := ""
	if etag != "" {
		tail = "." + escapeName(etag)
	}
	name := prefix + escapeName(rawURL) + tail
	if len(root)+1+len(name)+len(suffix) < downloadMax {
		return name
	}
	name = prefix + hashName(rawURL)
	if len(name)+len(tail)+len(longestSide) > nameMax {
		return name // fetched anew each time, as one without an ETag
	}
	return name + tail
}

// nameMax is the longest file name, in bytes; longestSide is the suffix that a name of a
// download must leave room for.
const (
	nameMax     = 255
	longestSide = ".roothash.p7s"
)

// hashName stands for a URL that is too long for a file name. The key is the one
// of systemd, so that its downloads are ours.
func hashName(rawURL string) string {
	key := []byte{0xdf, 0x89, 0x16, 0x87, 0x01, 0xcc, 0x42, 0x30, 0x98, 0xab, 0x4a, 0x19, 0xa6, 0xa5, 0x63, 0x4f}
	return fmt.Sprintf("%x", siphash.Hash(binary.LittleEndian.Uint64(key), binary.LittleEndian.Uint64(key[8:]), []byte(rawURL)))
}

// knownETags lists the ETags of the downloads of a URL that are there already.
func knownETags(root, prefix, rawURL, suffix string) []string {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil
	}
	starts := []string{prefix + escapeName(rawURL) + ".", prefix + hashName(rawURL) + "."}
	var list []string
	for _, entry := range entries {
		rest, ok := strings.CutPrefix(entry.Name(), starts[0])
		if !ok {
			rest, ok = strings.CutPrefix(entry.Name(), starts[1])
		}
		if !ok {
			continue
		}
		if rest, ok = strings.CutSuffix(rest, suffix); !ok {
			continue
		}
		if etag, ok := unescapeName(rest); ok && etag != "" && etag != "*" { // which would stand for any
			list = append(list, etag)
		}
	}
	return list
}

// archiveSuffixes are cut off a URL's file name to find the files beside it.
var archiveSuffixes = []string{".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst", ".tar", ".tgz"}

var diskSuffixes = []string{".xz", ".gz", ".bz2", ".zst"}

// beside returns the URL of another file in the same place. What follows a ? or # is
// the first file's own, as with stock.
func beside(rawURL, file string) (string, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", err
	}
	i := strings.LastIndexByte(u.EscapedPath(), '/')
	raw := u.EscapedPath()[:i+1] + url.PathEscape(file)
	if u.Path, err = url.PathUnescape(raw); err != nil {
		return "", err
	}
	u.RawPath = raw
	u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = "", false, "", ""
	return u.String(), nil
}

// lastPart is the file name in a URL.
func lastPart(rawURL string) (string, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", err
	}
	name := filepath.Base(u.Path)
	if name == "." || name == "/" || name == "" {
		return "", fmt.Errorf("%w: URL %q names no file", ErrInvalid, rawURL)
	}
	return name, nil
}

// NameOf is the name of the image that a URL makes when nobody says another.
func NameOf(rawURL string, kind Kind) (string, error) {
	name, err := lastPart(rawURL)
	if err != nil {
		return "", err
	}
	return NameOfFile(name, kind), nil
}

// NameOfFile is NameOf for a file.
func NameOfFile(name string, kind Kind) string {
	switch kind {
	case PullTar, ImportTar:
		return stem(name, true)
	case PullRaw, ImportRaw:
		name = stem(name, false)
		for _, suffix := range []string{".sysext", ".confext"} {
			name = strings.TrimSuffix(name, suffix)
		}
	}
	return name
}

// FormatOfName is the compression that a file's name asks for.
func FormatOfName(name string) string {
	for suffix, format := range map[string]Format{".xz": XZ, ".gz": Gzip, ".tgz": Gzip, ".bz2": Bzip2, ".zst": Zstd} {
		if strings.HasSuffix(name, suffix) {
			return string(format)
		}
	}
	return string(Uncompressed)
}

// stem is a file name without the suffixes of its format.
func stem(name string, tree bool) string {
	if tree {
		for _, suffix := range archiveSuffixes {
			if s, ok := strings.CutSuffix(name, suffix); ok {
				return s
			}
		}
		return name
	}
	for _, suffix := range diskSuffixes {
		if s, ok := strings.CutSuffix(name, suffix); ok {
			name = s
			break
		}
	}
	for _, suffix := range []string{".raw", ".qcow2", ".img", ".bin"} {
		if s, ok := strings.CutSuffix(name, suffix); ok {
			return s
		}
	}
	return name
}
