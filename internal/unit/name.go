package unit

import (
	"fmt"
	"strings"
)

// MaxNameBytes bounds a unit name (UNIT_NAME_MAX of systemd.unit(5)).
const MaxNameBytes = 255

// Slice is where machines live.
const Slice = "machine.slice"

// Escape turns any string into the prefix or instance of a unit name, as
// systemd-escape(1) does: "/" becomes "-", and what is not a letter, digit,
// ":", "_" or "." becomes \xNN, as does a leading dot.
func Escape(s string) string {
	const hex = "0123456789abcdef"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case c == '/':
			b.WriteByte('-')
		case i == 0 && c == '.', !plain(c):
			b.WriteString(`\x`)
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// Unescape is the inverse of Escape; it reports whether s is well formed.
func Unescape(s string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '-':
			b.WriteByte('/')
		case c != '\\':
			if !plain(c) {
				return "", false
			}
			b.WriteByte(c)
		case i+3 >= len(s) || s[i+1] != 'x':
			return "", false
		default:
			hi, lo := unhex(s[i+2]), unhex(s[i+3])
			if hi < 0 || lo < 0 {
				return "", false
			}
			b.WriteByte(byte(hi<<4 | lo))
			i += 3
		}
	}
	return b.String(), true
}

func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == ':' || c == '_' || c == '.'
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// ScopeName is the scope of the machine called name.
func ScopeName(name string) string { return "machine-" + Escape(name) + ".scope" }

// SpawnerName is the instance of the spawner's template for an image. The name
// goes in as it is, not escaped: the template hands it to the spawner as %i.
func SpawnerName(image string) string { return "systemd-nspawn@" + image + ".service" }

// SpawnedImage is the inverse of SpawnerName.
func SpawnedImage(unit string) (string, bool) {
	rest, ok := strings.CutPrefix(unit, "systemd-nspawn@")
	if !ok {
		return "", false
	}
	rest, ok = strings.CutSuffix(rest, ".service")
	return rest, ok && rest != ""
}

// Valid reports whether s can name a unit: one known suffix, no separator.
func Valid(s string) bool {
	if s == "" || len(s) > MaxNameBytes {
		return false
	}
	dot := strings.LastIndexByte(s, '.')
	if dot <= 0 || s[0] == '@' {
		return false
	}
	switch s[dot+1:] {
	case "service", "scope", "slice", "socket", "target", "mount", "swap", "timer", "path", "automount", "device":
	default:
		return false
	}
	for i := range len(s) {
		if c := s[i]; !plain(c) && c != '-' && c != '@' && c != '\\' {
			return false
		}
	}
	return true
}

// OfCgroup splits a cgroup path into the unit that it belongs to and the path
// below that unit: slices are skipped, the first other element is the unit.
// prefix is where the service manager's tree starts ("/" on most hosts). A
// process that sits in a slice or in the root itself belongs to that slice,
// "-.slice" for the root.
func OfCgroup(path, prefix string) (unit, subgroup string, err error) {
	if strings.HasSuffix(path, "..") || strings.Contains(path, "/../") {
		return "", "", fmt.Errorf("cgroup %q is outside of our cgroup namespace", path)
	}
	rest := strings.Trim(path, "/")
	if prefix = strings.Trim(prefix, "/"); prefix != "" {
		if rest == prefix {
			rest = ""
		} else if r, ok := strings.CutPrefix(rest, prefix+"/"); ok {
			rest = r
		} else {
			return "", "", fmt.Errorf("cgroup %q is outside of %q", path, "/"+prefix)
		}
	}
	slice := "-.slice"
	for rest != "" {
		element, after, _ := strings.Cut(rest, "/")
		// A name that the kernel would take for one of its own files is
		// prefixed with "_" in the tree.
		name := strings.TrimPrefix(element, "_")
		if !Valid(name) {
			return "", "", fmt.Errorf("cgroup %q: %q is not a unit", path, element)
		}
		if !strings.HasSuffix(name, ".slice") {
			return name, after, nil
		}
		slice, rest = name, after
	}
	return slice, "", nil
}

// Quote makes a unit name safe to paste into a shell, as systemctl(1) does it.
func Quote(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return `"` + strings.ReplaceAll(s, `\`, `\\`) + `"`
}
