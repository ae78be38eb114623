package sys

import (
	"syscall"
	"unicode"
)

// Strerror is strerror(3): Go's table has the same words but no capital.
func Strerror(errno syscall.Errno) string {
	text := []rune(errno.Error())
	if len(text) == 0 {
		return "Unknown error"
	}
	text[0] = unicode.ToUpper(text[0])
	return string(text)
}
