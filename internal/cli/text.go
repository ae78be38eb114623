package cli

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
)

// Width returns how many columns s takes on a terminal.
func Width(s string) int { return runewidth.StringWidth(s) }

// Ellipsize shortens s to width columns, its end replaced by "…".
func Ellipsize(s string, width int) string {
	if Width(s) <= width {
		return s
	}
	if width <= 0 {
		return ""
	}
	return runewidth.Truncate(s, width, "…")
}

// Printable replaces what could steer a terminal: control characters and bytes
// that are not UTF-8. Newlines stay when multi is set.
func Printable(s string, multi bool) string {
	clean := true
	for _, r := range s {
		if unprintable(r, multi) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)):
			b.WriteByte('?')
		case unprintable(r, multi):
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func unprintable(r rune, multi bool) bool {
	if r == '\n' && multi {
		return false
	}
	return r == utf8.RuneError || unicode.IsControl(r)
}
