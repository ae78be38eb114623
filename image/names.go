package image

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"machined/internal/overlay"
)

// nameMax is the longest file name in bytes (NAME_MAX).
const nameMax = 255

// ValidName says whether name may name an image: a file name in UTF-8 without
// control characters that is neither "." nor ".." and not one of the temporary
// names that start with ".#".
func ValidName(name string) bool {
	return CheckName(name) == nil
}

// CheckName is ValidName with the broken rule in its error, an ErrInvalidName.
func CheckName(name string) error {
	bad := func(rule string) error {
		shown := name
		if len(shown) > 80 {
			shown = shown[:80] + "…"
		}
		return fmt.Errorf("%w %q: %s", ErrInvalidName, shown, rule)
	}
	switch {
	case name == "":
		return bad("it is empty")
	case name == "." || name == "..":
		return bad("it is a directory reference")
	case len(name) > nameMax:
		return bad("it is longer than 255 bytes")
	case strings.HasPrefix(name, ".#"):
		return bad(`names starting with ".#" are temporary files`)
	case name == overlay.PrivateDir:
		return bad("machined keeps what is no image there")
	case strings.ContainsRune(name, '/'):
		return bad("it has a slash")
	case !utf8.ValidString(name):
		return bad("it is not valid UTF-8")
	}
	for i := range len(name) {
		if name[i] < 0x20 || name[i] == 0x7f {
			return bad("it has a control character")
		}
	}
	return nil
}

// skipped says whether discovery passes over a directory entry by its name alone.
func skipped(name string) bool {
	return !ValidName(name) || strings.HasPrefix(name, ".sysupdate.")
}

// AuxiliarySuffixes are the suffixes of the files that lie beside an image and
// are renamed, cloned and removed with it.
var AuxiliarySuffixes = []string{
	".nspawn", ".oci-config", ".roothash", ".roothash.p7s", ".usrhash", ".usrhash.p7s",
	".verity", ".raw.tpmstate", ".raw.efinvramstate",
}

// Suffixes of the forms in which an image lies in its directory.
const (
	rawSuffix    = ".raw"
	mstackSuffix = ".mstack"
	pickSuffix   = ".v"
)

// SearchPath returns the directories in which images of a class are looked for
// system-wide, in order: the first match of a name wins.
func SearchPath(class Class) []string {
	switch class {
	case ClassPortable:
		return []string{"/etc/portables", "/run/portables", "/var/lib/portables", "/usr/local/lib/portables", "/usr/lib/portables"}
	case ClassSysext:
		return []string{"/etc/extensions", "/run/extensions", "/var/lib/extensions"}
	case ClassConfext:
		return []string{"/run/confexts", "/var/lib/confexts", "/usr/local/lib/confexts", "/usr/lib/confexts"}
	default:
		return []string{"/etc/machines", "/run/machines", "/var/lib/machines", "/var/lib/container", "/usr/local/lib/machines", "/usr/lib/machines"}
	}
}

// PoolDir returns the directory in which new images of a class are made.
func PoolDir(class Class) string {
	switch class {
	case ClassPortable:
		return "/var/lib/portables"
	case ClassSysext:
		return "/var/lib/extensions"
	case ClassConfext:
		return "/var/lib/confexts"
	default:
		return "/var/lib/machines"
	}
}
