// Package dbus is the bus plumbing under every interface of ours: connecting by
// one rule, a transport that passes file descriptors safely, a tree of objects
// that answers calls with strict signatures, properties, introspection, error
// names for errnos, the credentials of a caller, and a context for each call
// that ends when its caller leaves the bus. It knows no interface of ours, and
// decides nothing about authorisation.
package dbus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	godbus "github.com/godbus/dbus/v5"
)

// privateSocket is where the bus listens that machined starts on a host
// without a system bus; machine1.PrivateBusAddress names the same place.
const privateSocket = "/run/machined/bus"

// standardSystem is the address of the system bus (dbus-daemon(1)).
const standardSystem = "unix:path=/run/dbus/system_bus_socket"

// SystemAddress returns the address of the bus that machined is on:
// $DBUS_SYSTEM_BUS_ADDRESS if set, else machined's private bus if its socket
// exists, else the standard system bus.
func SystemAddress() string {
	if address := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); address != "" {
		return address
	}
	if st, err := os.Stat(privateSocket); err == nil && st.Mode()&os.ModeSocket != 0 {
		return "unix:path=" + privateSocket
	}
	return standardSystem
}

// SessionAddress returns the address of the caller's own bus:
// $DBUS_SESSION_BUS_ADDRESS, else $XDG_RUNTIME_DIR/bus.
func SessionAddress() (string, error) {
	if address := os.Getenv("DBUS_SESSION_BUS_ADDRESS"); address != "" {
		return address, nil
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return "unix:path=" + dir + "/bus", nil
	}
	return "", errors.New("find session bus: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set")
}

// ConnectSystem connects to the bus of SystemAddress. ctx bounds the connecting
// only; the connection lives until Close.
func ConnectSystem(ctx context.Context) (*godbus.Conn, error) {
	conn, err := Connect(ctx, SystemAddress())
	if err != nil {
		return nil, fmt.Errorf("connect to system bus: %w", err)
	}
	return conn, nil
}

// ConnectSession connects to the bus of SessionAddress.
func ConnectSession(ctx context.Context) (*godbus.Conn, error) {
	address, err := SessionAddress()
	if err != nil {
		return nil, err
	}
	conn, err := Connect(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("connect to session bus: %w", err)
	}
	return conn, nil
}

type treeKey struct{}

// TreeOf returns the object tree of a connection made by Connect; nil for
// another one.
func TreeOf(conn *godbus.Conn) *Tree {
	tree, _ := conn.Context().Value(treeKey{}).(*Tree)
	return tree
}

// Connect connects to a message bus at one of the addresses (separated by ";"),
// of which unix:path= and unix:abstract= are understood. Signals are delivered
// to the channels of conn.Signal in the order in which they were sent.
func Connect(ctx context.Context, address string) (*godbus.Conn, error) {
	var errs []error
	for one := range strings.SplitSeq(address, ";") {
		if one == "" {
			continue
		}
		sock, err := dialUnix(ctx, one)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		conn, err := FromSocket(ctx, sock)
		if err != nil {
			errs = append(errs, fmt.Errorf("speak to bus at %s: %w", one, err))
			continue
		}
		return conn, nil
	}
	if errs == nil {
		return nil, fmt.Errorf("connect to bus: address %q is empty", address)
	}
	return nil, errors.Join(errs...)
}

// DialSystem opens a socket to the bus of SystemAddress, on which nothing has been
// said yet: for who has another use for it than FromSocket.
func DialSystem(ctx context.Context) (*net.UnixConn, error) {
	var errs []error
	for one := range strings.SplitSeq(SystemAddress(), ";") {
		if one == "" {
			continue
		}
		sock, err := dialUnix(ctx, one)
		if err == nil {
			return sock, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("connect to system bus: %w", errors.Join(errs...))
}
