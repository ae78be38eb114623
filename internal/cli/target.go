package cli

import (
	"context"
	"os"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"machined/dbus"
)

// Target says which bus to speak to.
type Target struct {
	Host    string // -H: [USER@]HOST[:PORT][/CONTAINER]
	Machine string // -M: [USER@]CONTAINER on this host
	User    bool   // the caller's own bus
}

// SetHost sets Host from the command line.
func (t *Target) SetHost(arg string) error {
	if arg == "" {
		return connectError("system", "SSH", unix.EINVAL)
	}
	t.Host, t.Machine = arg, ""
	return nil
}

// SetMachine sets Machine from the command line.
func (t *Target) SetMachine(arg string) error {
	if arg == "" {
		return connectError("system", "machine", unix.EINVAL)
	}
	t.Machine, t.Host = arg, ""
	return nil
}

// Local says that the bus is this host's.
func (t Target) Local() bool { return t.Host == "" && t.Machine == "" }

// Connect opens the bus. Its error is a whole message.
func (t Target) Connect(ctx context.Context) (*godbus.Conn, error) {
	var conn *godbus.Conn
	var err error
	scope, way := "system", "local"
	switch {
	case t.Host != "":
		way = "SSH"
		conn, err = connectHost(ctx, t.Host)
	case t.Machine != "" && t.Machine != ".host":
		way = "machine"
		conn, err = connectMachine(ctx, t.Machine)
	case t.User:
		scope = "user"
		if os.Getenv("DBUS_SESSION_BUS_ADDRESS") == "" && os.Getenv("XDG_RUNTIME_DIR") == "" {
			return nil, Failf("Failed to connect to user scope bus via local transport: $DBUS_SESSION_BUS_ADDRESS and $XDG_RUNTIME_DIR not defined")
		}
		conn, err = dbus.ConnectSession(ctx)
	default:
		conn, err = dbus.ConnectSystem(ctx)
	}
	if err != nil {
		return nil, connectError(scope, way, err)
	}
	return conn, nil
}

func connectError(scope, way string, err error) error {
	return Failf("Failed to connect to %s scope bus via %s transport: %s", scope, way, Reason(err))
}
