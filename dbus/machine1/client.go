package machine1

import (
	"context"
	"os"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus"
)

// Client calls machined. Its methods have the names of the bus methods, and
// return what these return; errors are godbus.Error with the names of this
// package.
type Client struct {
	conn *godbus.Conn
	// Interactive lets polkit ask a person.
	Interactive bool
}

// NewClient returns a client on conn.
func NewClient(conn *godbus.Conn) *Client { return &Client{conn: conn, Interactive: true} }

func (c *Client) call(ctx context.Context, path godbus.ObjectPath, iface, member string, args ...any) *godbus.Call {
	return dbus.Invoke(ctx, c.conn, dbus.Request{
		Service: BusName, Path: path, Interface: iface, Method: member, Interactive: c.Interactive,
	}, args...)
}

// Manager calls a method of the Manager and stores its answer in ret, which are
// pointers to the method's out arguments.
func (c *Client) Manager(ctx context.Context, member string, args []any, ret ...any) error {
	return c.call(ctx, ManagerPath, ManagerInterface, member, args...).Store(ret...)
}

// Own calls a method of org.machined.Manager1.
func (c *Client) Own(ctx context.Context, member string, args []any, ret ...any) error {
	return c.call(ctx, ManagerPath, OwnManagerInterface, member, args...).Store(ret...)
}

// OwnMachine calls a method of org.machined.Machine1 on a machine.
func (c *Client) OwnMachine(ctx context.Context, machine, member string, args []any, ret ...any) error {
	return c.call(ctx, MachinePath(machine), OwnMachineInterface, member, args...).Store(ret...)
}

// Properties returns all properties of one interface of the object at path.
func (c *Client) Properties(ctx context.Context, path godbus.ObjectPath, iface string) (map[string]godbus.Variant, error) {
	var out map[string]godbus.Variant
	err := c.call(ctx, path, "org.freedesktop.DBus.Properties", "GetAll", iface).Store(&out)
	return out, err
}

// ListMachines returns all machines.
func (c *Client) ListMachines(ctx context.Context) ([]ListedMachine, error) {
	var out []ListedMachine
	err := c.Manager(ctx, "ListMachines", nil, &out)
	return out, err
}

// ListMachinesDetailed returns all machines with at most maxAddresses
// addresses each. Stock machined does not have it (IsUnknownMethod).
func (c *Client) ListMachinesDetailed(ctx context.Context, maxAddresses uint32) ([]DetailedMachine, error) {
	var out []DetailedMachine
	err := c.Own(ctx, "ListMachinesDetailed", []any{maxAddresses}, &out)
	return out, err
}

// StartMachine starts the image called name and returns its unit when it is up.
func (c *Client) StartMachine(ctx context.Context, name string, options map[string]godbus.Variant) (string, error) {
	if options == nil {
		options = map[string]godbus.Variant{}
	}
	var unit string
	err := c.Own(ctx, "StartMachine", []any{name, options}, &unit)
	return unit, err
}

// EnableMachines makes images start with the host, or no longer.
func (c *Client) EnableMachines(ctx context.Context, names []string, enabled bool) ([]UnitChange, error) {
	var out []UnitChange
	err := c.Own(ctx, "EnableMachines", []any{names, enabled}, &out)
	return out, err
}

// Unbind takes a bind mount back.
func (c *Client) Unbind(ctx context.Context, machine, destination string) error {
	return c.OwnMachine(ctx, machine, "Unbind", []any{destination})
}

// ListBinds returns what has been bound into a running machine.
func (c *Client) ListBinds(ctx context.Context, machine string) ([]LiveBind, error) {
	var out []LiveBind
	err := c.OwnMachine(ctx, machine, "ListBinds", nil, &out)
	return out, err
}

// OpenShell opens a shell; the caller closes the terminal.
func (c *Client) OpenShell(ctx context.Context, machine, user, path string, args, environment []string) (*os.File, string, error) {
	return c.openTerminal(ctx, "OpenMachineShell", machine, user, path, nonNil(args), nonNil(environment))
}

// OpenLogin opens a login prompt; the caller closes the terminal.
func (c *Client) OpenLogin(ctx context.Context, machine string) (*os.File, string, error) {
	return c.openTerminal(ctx, "OpenMachineLogin", machine)
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func (c *Client) openTerminal(ctx context.Context, member string, args ...any) (*os.File, string, error) {
	var fd godbus.UnixFD
	var path string
	if err := c.Manager(ctx, member, args, &fd, &path); err != nil {
		return nil, "", err
	}
	return os.NewFile(uintptr(fd), path), path, nil
}
