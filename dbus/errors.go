package dbus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"unicode/utf8"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// Error names of the D-Bus specification and of sd-bus-errors(3).
const (
	errorPrefix = "org.freedesktop.DBus.Error."

	ErrorFailed                           = errorPrefix + "Failed"
	ErrorInvalidArgs                      = errorPrefix + "InvalidArgs"
	ErrorAccessDenied                     = errorPrefix + "AccessDenied"
	ErrorNotSupported                     = errorPrefix + "NotSupported"
	ErrorLimitsExceeded                   = errorPrefix + "LimitsExceeded"
	ErrorFileNotFound                     = errorPrefix + "FileNotFound"
	ErrorTimeout                          = errorPrefix + "Timeout"
	ErrorUnknownMethod                    = errorPrefix + "UnknownMethod"
	ErrorUnknownObject                    = errorPrefix + "UnknownObject"
	ErrorUnknownInterface                 = errorPrefix + "UnknownInterface"
	ErrorUnknownProperty                  = errorPrefix + "UnknownProperty"
	ErrorPropertyReadOnly                 = errorPrefix + "PropertyReadOnly"
	ErrorServiceUnknown                   = errorPrefix + "ServiceUnknown"
	ErrorNameHasNoOwner                   = errorPrefix + "NameHasNoOwner"
	ErrorInteractiveAuthorizationRequired = errorPrefix + "InteractiveAuthorizationRequired"
)

// Error is an error with its name on the bus.
type Error struct {
	Name    string
	Message string
	cause   error
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.cause }

// Errorf makes an error with a name on the bus. %w works as in fmt.Errorf.
func Errorf(name, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Name: name, Message: err.Error(), cause: errors.Unwrap(err)}
}

// errnoNames are the errnos with a name of their own; sd-bus-errors(3). All
// others are System.Error.<NAME>.
var errnoNames = map[syscall.Errno]string{
	unix.EPERM: ErrorAccessDenied, unix.EACCES: ErrorAccessDenied,
	unix.EINVAL:        ErrorInvalidArgs,
	unix.ENOENT:        ErrorFileNotFound,
	unix.EEXIST:        errorPrefix + "FileExists",
	unix.ESRCH:         errorPrefix + "UnixProcessIdUnknown",
	unix.EOPNOTSUPP:    ErrorNotSupported,
	unix.ENOBUFS:       ErrorLimitsExceeded,
	unix.ETIMEDOUT:     ErrorTimeout,
	unix.EIO:           errorPrefix + "IOError",
	unix.ENOMEM:        errorPrefix + "NoMemory",
	unix.EADDRINUSE:    errorPrefix + "AddressInUse",
	unix.EADDRNOTAVAIL: errorPrefix + "BadAddress",
	unix.EBADMSG:       errorPrefix + "InconsistentMessage",
	unix.ECONNRESET:    errorPrefix + "Disconnected",
}

// ErrnoName is the name that an errno has on the bus.
func ErrnoName(errno syscall.Errno) string {
	if name, ok := errnoNames[errno]; ok {
		return name
	}
	if name := unix.ErrnoName(errno); name != "" {
		return "System.Error." + name
	}
	return ErrorFailed
}

// NameOf returns the name that err has on the bus: that of an Error or of an
// answer of another service within it, else that of its errno, else Failed.
func NameOf(err error) string {
	var own *Error
	var value godbus.Error
	var pointer *godbus.Error
	var errno syscall.Errno
	switch {
	case errors.As(err, &own):
		return own.Name
	case errors.As(err, &value):
		return value.Name
	case errors.As(err, &pointer) && pointer != nil:
		return pointer.Name
	case errors.As(err, &errno):
		return ErrnoName(errno)
	case errors.Is(err, context.DeadlineExceeded):
		return ErrorTimeout
	}
	return ErrorFailed
}

// maxErrorText bounds the text of an error reply, which may quote a caller's
// argument of any length.
const maxErrorText = 2048

// errorText is what an error reply says: valid UTF-8 without NUL, and bounded.
// An errno at its end is written as strerror(3) has it, which people look for.
func errorText(err error) string {
	text := strings.ToValidUTF8(strings.ReplaceAll(err.Error(), "\x00", "\\0"), "\uFFFD")
	var errno syscall.Errno
	if errors.As(err, &errno) {
		if head, ok := strings.CutSuffix(text, errno.Error()); ok {
			text = head + sys.Strerror(errno)
		}
	}
	if len(text) <= maxErrorText {
		return text
	}
	cut := maxErrorText
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "…"
}
