package transfer

import (
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
	key := [2]uint64{0x2d4eb8cf9b9b49c1, 0x8a2ce5b1a8d0f4e6}
	return prefix + fmt.Sprintf("%016x", siphash.Hash(key[0], key[1], []byte(rawURL+"\x00"+etag)))
}

// knownETags lists the ETags of the downloads of a URL that are there already.
func knownETags(root, prefix, rawURL, suffix string) []string {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil
	}
	start := prefix + escapeName(rawURL) + "."
	var list []string
	for _, entry := range entries {
		rest, ok := strings.CutPrefix(entry.Name(), start)
		if !ok {
			continue
		}
		if rest, ok = strings.CutSuffix(rest, suffix); !ok {
			continue
		}
		if etag, ok := unescapeName(rest); ok && etag != "" {
			list = append(list, etag)
		}
	}
	return list
}

// archiveSuffixes are cut off a URL's file name to find the files beside it.
var archiveSuffixes = []string{".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst", ".tar", ".tgz"}

var diskSuffixes = []string{".xz", ".gz", ".bz2", ".zst"}

// beside returns the URL of another file in the same place.
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
