package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus"
	"machined/dbus/machine1"
)

// callTimeout bounds ordinary calls, as in sd-bus. A person answering polkit
// needs more, so calls that may ask get askTimeout.
const (
	callTimeout = 25 * time.Second
	askTimeout  = 2 * time.Minute
)

// Bus makes the calls of one run of a client.
type Bus struct {
	Conn *godbus.Conn
	// Ask lets a service ask the person for a password (polkit(8)).
	Ask bool
}

// Call makes one call with an ordinary deadline and stores its results.
func (b *Bus) Call(ctx context.Context, o Object, method string, args []any, results ...any) error {
	limit := callTimeout
	if b.Ask {
		limit = askTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return b.CallSlow(ctx, o, method, args, results...)
}

// CallSlow is Call without a deadline, for work that may take long.
func (b *Bus) CallSlow(ctx context.Context, o Object, method string, args []any, results ...any) error {
	call := dbus.Invoke(ctx, b.Conn, dbus.Request{
		Service: o.Service, Path: o.Path, Interface: o.Interface, Method: method, Interactive: b.Ask,
	}, args...)
	if call.Err != nil {
		return call.Err
	}
	if len(results) == 0 {
		return nil
	}
	if err := call.Store(results...); err != nil {
		return fmt.Errorf("read reply of %s: %w", method, err)
	}
	return nil
}

// Properties reads all properties of an interface.
func (b *Bus) Properties(ctx context.Context, o Object) (map[string]godbus.Variant, error) {
	all := map[string]godbus.Variant{}
	err := b.Call(ctx, Object{o.Service, o.Path, "org.freedesktop.DBus.Properties"}, "GetAll", []any{o.Interface}, &all)
	return all, err
}

// Object is an interface of an object of a service.
type Object struct {
	Service   string
	Path      godbus.ObjectPath
	Interface string
}

// The objects that clients start from.
var (
	Manager    = Object{machine1.BusName, machine1.ManagerPath, machine1.ManagerInterface}
	OwnManager = Object{machine1.BusName, machine1.ManagerPath, machine1.OwnManagerInterface}
	Systemd    = Object{"org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"}
	Importd    = Object{"org.freedesktop.import1", "/org/freedesktop/import1", "org.freedesktop.import1.Manager"}
	// ImportdOwn is what import1 offers beyond stock's interface (org.machined(5)).
	ImportdOwn = Object{Importd.Service, Importd.Path, "org.machined.Import1"}
)

// IsUnsupported says that the service does not have the method, so that an
// older way may be tried.
func IsUnsupported(err error) bool {
	switch ErrorName(err) {
	case dbus.ErrorUnknownMethod, dbus.ErrorUnknownInterface, dbus.ErrorUnknownObject:
		return true
	case dbus.ErrorAccessDenied:
		// The bus itself refuses what stock's policy does not list.
		return strings.HasPrefix(Reason(err), "Rejected send message")
	}
	return false
}

// ErrorName is the D-Bus name of an error, "" if it did not come over the bus.
func ErrorName(err error) string {
	var e godbus.Error
	if errors.As(err, &e) {
		return e.Name
	}
	var p *godbus.Error
	if errors.As(err, &p) {
		return p.Name
	}
	return ""
}

// Reason is the text of an error for a person, on one line: what the service
// says, or what the system says.
func Reason(err error) string { return reason(err, false) }

// ReasonLines is Reason for an error whose text has more lines than one.
func ReasonLines(err error) string { return reason(err, true) }

func reason(err error, lines bool) string {
	var e godbus.Error
	var p *godbus.Error
	if errors.As(err, &p) {
		e = *p
	} else if !errors.As(err, &e) {
		var errno interface{ Errno() string }
		if errors.As(err, &errno) {
			return errno.Errno()
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return "Connection timed out"
		}
		var format godbus.FormatError
		if errors.As(err, &format) { // an argument that no message can hold, as one that is no UTF-8
			return "Invalid argument"
		}
		return errnoText(err)
	}
	if len(e.Body) > 0 {
		if text, ok := e.Body[0].(string); ok && text != "" {
			return Printable(text, true)
		}
	}
	switch e.Name {
	case dbus.ErrorAccessDenied:
		return "Access denied"
	case dbus.ErrorInteractiveAuthorizationRequired:
		return "Interactive authentication required."
	}
	return e.Name
}

// environment returns the value of a variable in the form NAME=VALUE, or "".
func environment(name string) string {
	if value, ok := os.LookupEnv(name); ok {
		return name + "=" + value
	}
	return ""
}
