package cli

import (
	"context"
	"os"
	"os/user"
	"strings"

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

// Local says that what the bus tells is about this very host: about its
// processes, links and files.
func (t Target) Local() bool {
	_, machine := splitMachine(t.Machine)
	return t.Host == "" && machine == ""
}

// PassesFiles says that descriptors can cross the connection, as they can to
// every bus on this host. They can't through ssh(1).
func (t Target) PassesFiles() bool { return t.Host == "" }

// splitMachine takes [USER@]CONTAINER apart. Either part may be missing: no user
// is the one that the connection is made for without, and no container, or
// .host, is this host, for which machine is "".
func splitMachine(arg string) (user, machine string) {
	user, machine, ok := strings.Cut(arg, "@")
	if !ok {
		user, machine = "", arg
	}
	if machine == ".host" {
		machine = ""
	}
	return user, machine
}

// Connect opens the bus. Its error is a whole message.
func (t Target) Connect(ctx context.Context) (*godbus.Conn, error) {
	scope := "system"
	if t.User {
		scope = "user"
	}
	switch {
	case t.Host != "":
		if t.User {
			// A session's bus is found by who is logged in here.
			return nil, connectError(scope, "SSH", unix.EOPNOTSUPP)
		}
		conn, err := connectHost(ctx, t.Host)
		if err != nil {
			return nil, connectError(scope, "SSH", err)
		}
		return conn, nil
	case t.Machine != "" && !t.own():
		conn, err := connectMachine(ctx, t.Machine, t.User)
		if err != nil {
			return nil, connectError(scope, "machine", err)
		}
		return conn, nil
	}
	connect := dbus.ConnectSystem
	if t.User {
		if os.Getenv("DBUS_SESSION_BUS_ADDRESS") == "" && os.Getenv("XDG_RUNTIME_DIR") == "" {
			return nil, Failf("Failed to connect to user scope bus via local transport: $DBUS_SESSION_BUS_ADDRESS and $XDG_RUNTIME_DIR not defined")
		}
		connect = dbus.ConnectSession
	}
	conn, err := connect(ctx)
	if err != nil {
		return nil, connectError(scope, "local", err)
	}
	return conn, nil
}

// own says that Machine names this host and the caller, who needs no session
// of another one's to reach the bus.
func (t Target) own() bool {
	if t.Machine == ".host" {
		return true
	}
	name, machine := splitMachine(t.Machine)
	if machine != "" || name == "" {
		return false
	}
	if name == "root" {
		return os.Geteuid() == 0
	}
	me, err := user.Current()
	return err == nil && me.Username == name
}

func connectError(scope, way string, err error) error {
	return Failf("Failed to connect to %s scope bus via %s transport: %s", scope, way, Reason(err))
}
