// Package vpick finds the newest entry of a versioned directory (systemd.v(7)) and
// orders versions (the UAPI Version Format Specification).
//
// It reads directories and opens nothing else.
package vpick

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// ErrNone says that a versioned directory has no matching entry.
var ErrNone = errors.New("no matching entry in versioned directory")

// dirSuffix is what the names of versioned directories end in.
const dirSuffix = ".v"

// Newest returns the file name of the newest entry of dir for name. Entries are
// NAME_VERSION[_ARCH][+LEFT[-DONE]] and the suffix. One with tries left beats one
// without. Only directories are looked at, or only files and block devices.
func Newest(dir, name, suffix string, directories bool) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	best, bestFile := candidate{}, ""
	for _, entry := range entries {
		c, ok := parseCandidate(entry.Name(), name, suffix)
		if !ok {
			continue
		}
		st, err := os.Stat(filepath.Join(dir, entry.Name()))
		if err != nil || st.IsDir() != directories {
			continue
		}
		if bestFile == "" || best.less(c) {
			best, bestFile = c, entry.Name()
		}
	}
	if bestFile == "" {
		return "", fmt.Errorf("%s: %w", dir, ErrNone)
	}
	return bestFile, nil
}

// Resolve replaces a path by the newest entry that it stands for: PATH/NAME.v,
// PATH/NAME.SUFFIX.v, or PATH.v/NAME___ and the suffix. Any other path is
// returned as it is. The suffix is what the names of entries end in, "" for
// directories.
func Resolve(path, suffix string, directories bool) (string, error) {
	dir, name := filepath.Clean(path), ""
	if stem, ok := strings.CutSuffix(filepath.Base(dir), dirSuffix); ok && stem != "" {
		name = strings.TrimSuffix(stem, suffix)
	} else if stem, ok := strings.CutSuffix(strings.TrimSuffix(filepath.Base(dir), suffix), "___"); ok && stem != "" && strings.HasSuffix(filepath.Dir(dir), dirSuffix) {
		dir, name = filepath.Dir(dir), stem
	}
	if st, err := os.Stat(dir); name == "" || err != nil || !st.IsDir() {
		return path, nil
	}
	file, err := Newest(dir, name, suffix, directories)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, file), nil
}

type candidate struct {
	version    string
	exhausted  bool // boot counting says that no try is left
	left, done uint64
}

// less says whether c is a worse pick than d.
func (c candidate) less(d candidate) bool {
	if c.exhausted != d.exhausted {
		return c.exhausted
	}
	if cmp := Compare(c.version, d.version); cmp != 0 {
		return cmp < 0
	}
	if c.left != d.left {
		return c.left < d.left
	}
	return c.done > d.done
}

func parseCandidate(file, name, suffix string) (candidate, bool) {
	rest, ok := strings.CutPrefix(file, name+"_")
	if !ok {
		return candidate{}, false
	}
	if rest, ok = strings.CutSuffix(rest, suffix); !ok || rest == "" {
		return candidate{}, false
	}
	c := candidate{left: ^uint64(0)}
	if plus := strings.LastIndexByte(rest, '+'); plus >= 0 {
		left, done, hasDone := strings.Cut(rest[plus+1:], "-")
		l, err := strconv.ParseUint(left, 10, 32)
		if err == nil && hasDone {
			c.done, err = strconv.ParseUint(done, 10, 32)
		}
		if err == nil {
			c.left, c.exhausted = l, l == 0
			rest = rest[:plus]
		}
	}
	if under := strings.LastIndexByte(rest, '_'); under >= 0 {
		if arch := rest[under+1:]; knownArch[arch] {
			if arch != nativeArch() {
				return candidate{}, false
			}
			rest = rest[:under]
		}
	}
	c.version = rest
	if rest == "" || strings.ContainsFunc(rest, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.~^", r)
	}) {
		return candidate{}, false
	}
	return c, true
}

// knownArch are the architecture names that a version may be followed by.
var knownArch = map[string]bool{
	"x86": true, "x86-64": true, "arm": true, "arm64": true, "riscv32": true, "riscv64": true,
	"ppc": true, "ppc-le": true, "ppc64": true, "ppc64-le": true, "s390": true, "s390x": true,
	"loongarch64": true, "mips": true, "mips-le": true, "mips64": true, "mips64-le": true, "ia64": true,
}

func nativeArch() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86-64"
	case "386":
		return "x86"
	case "ppc64le":
		return "ppc64-le"
	case "loong64":
		return "loongarch64"
	default:
		return runtime.GOARCH
	}
}

// Compare orders versions by the UAPI version format specification:
// -1 when a is older than b, 0 when equal, 1 when newer.
func Compare(a, b string) int {
	digit := func(c byte) bool { return c >= '0' && c <= '9' }
	alpha := func(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
	known := func(c byte) bool { return digit(c) || alpha(c) || strings.IndexByte("-.~^", c) >= 0 }
	for {
		for a != "" && !known(a[0]) {
			a = a[1:]
		}
		for b != "" && !known(b[0]) {
			b = b[1:]
		}
		// Each separator in its rank: a lower one ends the shorter version first.
		for _, sep := range []byte("~-^.") {
			if sep == '-' && (a == "" || b == "") {
				// The end of a version is older than anything but "~".
				if a == b {
					return 0
				}
				if a == "" {
					return -1
				}
				return 1
			}
			ha, hb := a != "" && a[0] == sep, b != "" && b[0] == sep
			if ha != hb {
				if ha {
					return -1
				}
				return 1
			}
			if ha {
				a, b = a[1:], b[1:]
			}
		}
		if (a != "" && digit(a[0])) || (b != "" && digit(b[0])) {
			na, ra := cutWhile(a, digit)
			nb, rb := cutWhile(b, digit)
			if cmp := compareNumbers(na, nb); cmp != 0 {
				return cmp
			}
			a, b = ra, rb
			continue
		}
		sa, ra := cutWhile(a, alpha)
		sb, rb := cutWhile(b, alpha)
		if cmp := strings.Compare(sa, sb); cmp != 0 {
			return cmp
		}
		a, b = ra, rb
	}
}

func cutWhile(s string, is func(byte) bool) (string, string) {
	n := 0
	for n < len(s) && is(s[n]) {
		n++
	}
	return s[:n], s[n:]
}

func compareNumbers(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	if len(a) != len(b) {
		if len(a) < len(b) {
			return -1
		}
		return 1
	}
	return strings.Compare(a, b)
}
