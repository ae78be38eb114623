package machine1

import (
	"errors"

	godbus "github.com/godbus/dbus/v5"
)

// ErrorName returns the name of an error from the bus, "" for another error.
func ErrorName(err error) string {
	var value godbus.Error
	if errors.As(err, &value) {
		return value.Name
	}
	var pointer *godbus.Error
	if errors.As(err, &pointer) && pointer != nil {
		return pointer.Name
	}
	return ""
}

// IsUnknownMethod reports whether err says that the service does not have what
// was called: how a client tells stock machined from ours.
func IsUnknownMethod(err error) bool {
	switch ErrorName(err) {
	case "org.freedesktop.DBus.Error.UnknownMethod", "org.freedesktop.DBus.Error.UnknownInterface",
		"org.freedesktop.DBus.Error.UnknownObject":
		return true
	}
	return false
}
