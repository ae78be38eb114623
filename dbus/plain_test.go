package dbus_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"machined/dbus"
	"machined/internal/testbus"
)

// TestNoDescriptors: a stream that passes no descriptors, as that of ssh(1),
// carries everything else, and a call with one fails without harm.
func TestNoDescriptors(t *testing.T) {
	t.Parallel()
	bus := testbus.Start(t)
	path := filepath.Join(t.TempDir(), "bridge")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	busPath, _, _ := strings.Cut(strings.TrimPrefix(bus.Address, "unix:path="), ",")
	go bridge(listener, busPath)
	conn, err := dbus.Connect(t.Context(), "unix:path="+path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	object := conn.BusObject()
	if call := object.Call("org.freedesktop.DBus.NameHasOwner", 0, godbus.UnixFD(os.Stdin.Fd())); !errors.Is(call.Err, unix.EOPNOTSUPP) {
		t.Errorf("call with a descriptor: %v, want EOPNOTSUPP", call.Err)
	}
	var id string
	if err := object.Call("org.freedesktop.DBus.GetId", 0).Store(&id); err != nil || id == "" {
		t.Errorf("call after that: %q, %v", id, err)
	}
}

// bridge passes bytes to and from a bus and nothing else, and says so.
func bridge(listener net.Listener, busPath string) {
	client, err := listener.Accept()
	if err != nil {
		return
	}
	defer client.Close()
	server, err := net.Dial("unix", busPath)
	if err != nil {
		return
	}
	defer server.Close()
	go func() { _, _ = io.Copy(client, server) }()
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		if bytes.Equal(buf[:n], []byte("NEGOTIATE_UNIX_FD\r\n")) {
			_, err = client.Write([]byte("ERROR no descriptors here\r\n"))
		} else {
			_, err = server.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}
