package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus"
)

// control is a connection to the bus that does nothing but to receive. Its name there
// stays for as long as its descriptor is open, so that it can be handed to another
// program: a connection of godbus reads ahead, and could not.
type control struct {
	sock *net.UnixConn
	name string

	stopped chan struct{} // closed when nothing is read any more
	begun   bool          // a message was read in part
}

// controlPatience bounds how long the bus may take to answer.
const controlPatience = 10 * time.Second

// newControl connects and says Hello (D-Bus specification, "Authentication Protocol").
func newControl() (_ *control, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), controlPatience)
	defer cancel()
	sock, err := dbus.DialSystem(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = sock.Close()
		}
	}()
	if err := sock.SetDeadline(time.Now().Add(controlPatience)); err != nil {
		return nil, err
	}
	c := &control{sock: sock}
	uid := hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid())))
	if _, err := io.WriteString(sock, "\x00AUTH EXTERNAL "+uid+"\r\n"); err != nil {
		return nil, err
	}
	// What follows the line is a message: nothing may be read ahead.
	var line []byte
	for !bytes.HasSuffix(line, []byte("\r\n")) && len(line) < 512 {
		var b [1]byte
		if _, err := io.ReadFull(sock, b[:]); err != nil {
			return nil, err
		}
		line = append(line, b[0])
	}
	if !strings.HasPrefix(string(line), "OK ") {
		return nil, fmt.Errorf("authenticate at the bus: got %q", line)
	}
	hello, err := helloMessage()
	if err != nil {
		return nil, err
	}
	if _, err := sock.Write(append([]byte("BEGIN\r\n"), hello...)); err != nil {
		return nil, err
	}
	for c.name == "" {
		msg, err := c.read()
		if err != nil {
			return nil, err
		}
		switch {
		case msg.Type == godbus.TypeError:
			return nil, fmt.Errorf("say Hello to the bus: %v", msg.Body)
		case msg.Type == godbus.TypeMethodReply && len(msg.Body) == 1:
			c.name, _ = msg.Body[0].(string)
		}
	}
	return c, sock.SetDeadline(time.Time{})
}

// helloMessage is the call by which a connection gets its name.
func helloMessage() ([]byte, error) {
	call := godbus.Message{Type: godbus.TypeMethodCall, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldDestination: godbus.MakeVariant("org.freedesktop.DBus"),
		godbus.FieldPath:        godbus.MakeVariant(godbus.ObjectPath("/org/freedesktop/DBus")),
		godbus.FieldInterface:   godbus.MakeVariant("org.freedesktop.DBus"),
		godbus.FieldMember:      godbus.MakeVariant("Hello"),
	}}
	var out bytes.Buffer
	if err := call.EncodeTo(&out, binary.LittleEndian); err != nil {
		return nil, err
	}
	binary.LittleEndian.PutUint32(out.Bytes()[8:], 1) // the serial number, which godbus sets when it sends
	return out.Bytes(), nil
}

// read reads one message, and not a byte more.
func (c *control) read() (*godbus.Message, error) {
	c.begun = false
	return godbus.DecodeMessage(readerFunc(func(b []byte) (int, error) {
		n, err := c.sock.Read(b)
		c.begun = c.begun || n > 0
		return n, err
	}))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// listen calls stop for each request to stop that comes, until pause.
func (c *control) listen(stop func(sender string)) {
	c.stopped = make(chan struct{})
	_ = c.sock.SetReadDeadline(time.Time{})
	go func() {
		defer close(c.stopped)
		for {
			msg, err := c.read()
			if err != nil {
				return
			}
			name, _ := msg.Headers[godbus.FieldInterface].Value().(string)
			member, _ := msg.Headers[godbus.FieldMember].Value().(string)
			sender, _ := msg.Headers[godbus.FieldSender].Value().(string)
			if msg.Type == godbus.TypeSignal && name == systemdName+".Scope" && member == "RequestStop" {
				stop(sender)
			}
		}
	}()
}

// pause stops listening. It is false when a message has only come in part.
func (c *control) pause() bool {
	_ = c.sock.SetReadDeadline(time.Unix(1, 0))
	<-c.stopped
	return !c.begun
}

// controller makes us the controller of scopes: PID 1 tells us, and nobody else,
// when one is to stop (org.freedesktop.systemd1(5), RequestStop).
func (b *bus) controller() []property {
	if b.control == nil {
		c, err := newControl()
		if err != nil {
			return nil // the scope can be stopped all the same, with less grace
		}
		b.control = c
		c.listen(b.requested)
	}
	return []property{{"Controller", godbus.MakeVariant(b.control.name)}}
}

// requested passes a request on that is from PID 1: anybody can send signals.
func (b *bus) requested(sender string) {
	conn, err := b.connect(context.Background())
	if err != nil {
		return
	}
	var owner string
	err = conn.BusObject().Call("org.freedesktop.DBus.GetNameOwner", 0, systemdName).Store(&owner)
	if err != nil || owner != sender {
		return
	}
	select {
	case b.stops <- struct{}{}:
	default:
	}
}

// StopRequests implements spawn.Registrar.
func (b *bus) StopRequests() <-chan struct{} { return b.stops }

// Stopping implements spawn.Registrar.
func (b *bus) Stopping() bool {
	ctx, cancel := context.WithTimeout(context.Background(), controlPatience)
	defer cancel()
	conn, err := b.connect(ctx)
	if err != nil {
		return false
	}
	var unit godbus.ObjectPath
	if err := conn.Object(systemdName, systemdPath).CallWithContext(ctx, managerName+".GetUnitByPID", 0, uint32(os.Getpid())).Store(&unit); err != nil {
		return false
	}
	var state godbus.Variant
	err = conn.Object(systemdName, unit).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, systemdName+".Unit", "ActiveState").Store(&state)
	return err == nil && state.Value() == "deactivating"
}

// Rest implements spawn.Registrar.
func (b *bus) Rest() (fd int, ok bool) {
	if b.control == nil {
		return -1, true
	}
	if isDone(b.control.stopped) {
		// The bus has closed the connection: nothing can come any more.
		return -1, true
	}
	if !b.control.pause() {
		return -1, false
	}
	if len(b.stops) > 0 {
		b.control.listen(b.requested)
		return -1, false
	}
	raw, err := b.control.sock.SyscallConn()
	if err == nil {
		err = raw.Control(func(n uintptr) { fd = int(n) })
	}
	if err != nil {
		b.control.listen(b.requested)
		return -1, false
	}
	return fd, true
}

// Wake implements spawn.Registrar.
func (b *bus) Wake(fd int) {
	if b.control == nil && fd >= 0 {
		f := os.NewFile(uintptr(fd), "bus")
		conn, err := net.FileConn(f)
		_ = f.Close()
		if sock, ok := conn.(*net.UnixConn); err == nil && ok {
			b.control = &control{sock: sock}
		}
	}
	if b.control != nil && fd >= 0 {
		b.control.listen(b.requested)
	}
}

func isDone(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
