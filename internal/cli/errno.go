package cli

import (
	"errors"
	"syscall"

	"machined/internal/sys"
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

// Strerror is strerror(3).
func Strerror(errno syscall.Errno) string { return sys.Strerror(errno) }
