package cli

import (
	"errors"
	"syscall"
	"unicode"
)

// errnoText writes an error of the system as the C library does; another error
// as it is.
func errnoText(err error) string {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	return Strerror(errno)
}

// Strerror is strerror(3): Go's table has the same words but no capital.
func Strerror(errno syscall.Errno) string {
	text := []rune(errno.Error())
	if len(text) == 0 {
		return "Unknown error"
	}
	text[0] = unicode.ToUpper(text[0])
	return string(text)
}
