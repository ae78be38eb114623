package registry

import "fmt"

// MaxNameBytes bounds the name of a machine (HOST_NAME_MAX of Linux).
const MaxNameBytes = 64

// ValidName reports whether name can be a machine's: labels of letters, digits
// and "-", none of them starting or ending with "-", joined by single dots
// (machinectl(1), "Machine and Image Names").
func ValidName(name string) bool {
	if name == "" || len(name) > MaxNameBytes {
		return false
	}
	last := byte('.')
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '-':
			if last == '.' {
				return false
			}
		case c == '.':
			if last == '.' || last == '-' {
				return false
			}
		default:
			return false
		}
		last = c
	}
	return last != '.' && last != '-'
}

func invalid(format string, args ...any) error {
	return &detailError{kind: ErrInvalid, text: fmt.Sprintf(format, args...)}
}

// clip shortens what a caller sent, for use in a message.
func clip(s string) string {
	if len(s) > 80 {
		return fmt.Sprintf("%.64q... (%d bytes)", s, len(s))
	}
	return fmt.Sprintf("%q", s)
}
