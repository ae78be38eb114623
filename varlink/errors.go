package varlink

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// Error names of org.varlink.service and of systemd's generic errors.
const (
	ErrorInterfaceNotFound       = "org.varlink.service.InterfaceNotFound"
	ErrorMethodNotFound          = "org.varlink.service.MethodNotFound"
	ErrorInvalidParameter        = "org.varlink.service.InvalidParameter"
	ErrorPermissionDenied        = "org.varlink.service.PermissionDenied"
	ErrorExpectedMore            = "org.varlink.service.ExpectedMore"
	ErrorInteractiveAuthRequired = "io.systemd.InteractiveAuthenticationRequired"
	ErrorSystem                  = "io.systemd.System"
)

// Error is an error reply: its name and its parameters (nil: none).
type Error struct {
	Name       string
	Parameters map[string]any
}

func (e *Error) Error() string { return "varlink error " + e.Name }

// NewError returns the error reply called name, without parameters.
func NewError(name string) *Error { return &Error{Name: name} }

// InvalidParameter is the error reply for a parameter that is missing, of the
// wrong type, unknown, or against a rule.
func InvalidParameter(name string) *Error {
	return &Error{Name: ErrorInvalidParameter, Parameters: map[string]any{"parameter": name}}
}

// SystemError is the error reply that carries an errno, io.systemd.System.
func SystemError(errno unix.Errno) *Error {
	return &Error{Name: ErrorSystem, Parameters: map[string]any{
		"origin":    "linux",
		"errno":     int(errno),
		"errnoName": unix.ErrnoName(errno),
	}}
}

// replyFor turns any error of a handler into an error reply. Permission errors
// have a name of their own, everything else becomes its errno, or EIO.
func replyFor(err error) *Error {
	var reply *Error
	if errors.As(err, &reply) {
		return reply
	}
	if errors.Is(err, fs.ErrPermission) {
		return NewError(ErrorPermissionDenied)
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		return SystemError(errno)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return SystemError(unix.ENOENT)
	case errors.Is(err, fs.ErrExist):
		return SystemError(unix.EEXIST)
	}
	return SystemError(unix.EIO)
}
