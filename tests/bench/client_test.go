//go:build integration

package bench

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// This test program is its own client inside of a host: started with
// $BENCH_CLIENT it calls the Manager over and over and prints how long each
// call took, in ns. It writes prepared bytes and decodes nothing, so that what
// is timed is the daemon and the bus and not a bus library.

// benchClient runs the client if that is what was asked for.
func benchClient() {
	spec := os.Getenv("BENCH_CLIENT")
	if spec == "" {
		return
	}
	if err := runClient(strings.Fields(spec)); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// runClient is called with a method, a number of calls, and the u arguments to
// use in turn.
func runClient(words []string) error {
	calls, err := strconv.Atoi(words[1])
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: "/run/dbus/system_bus_socket"}); err != nil {
		return err
	}
	c := &rawClient{fd: fd, in: make([]byte, 1<<20)}
	if err := c.hello(); err != nil {
		return err
	}
	var frames [][]byte
	for _, word := range words[2:] {
		n, err := strconv.ParseUint(word, 10, 32)
		if err != nil {
			return err
		}
		frames = append(frames, encodeCall("org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager", words[0], uint32(n)))
	}
	if frames == nil {
		frames = [][]byte{encodeCall("org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager", words[0])}
	}
	took := make([]time.Duration, calls)
	for i := range took {
		frame := frames[i%len(frames)]
		serial := uint32(i + 2)
		binary.LittleEndian.PutUint32(frame[8:], serial)
		start := time.Now()
		if err := c.call(frame, serial); err != nil {
			return fmt.Errorf("call %d of %s: %w", i, words[0], err)
		}
		took[i] = time.Since(start)
	}
	var out bytes.Buffer
	for _, t := range took {
		fmt.Fprintln(&out, t.Nanoseconds())
	}
	_, err = os.Stdout.Write(out.Bytes())
	return err
}

func encodeCall(dest, path, iface, member string, args ...any) []byte {
	msg := &godbus.Message{Type: godbus.TypeMethodCall, Body: args, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldDestination: godbus.MakeVariant(dest),
		godbus.FieldPath:        godbus.MakeVariant(godbus.ObjectPath(path)),
		godbus.FieldInterface:   godbus.MakeVariant(iface),
		godbus.FieldMember:      godbus.MakeVariant(member),
	}}
	if len(args) > 0 {
		msg.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(args...))
	}
	var buf bytes.Buffer
	// godbus writes serial 0 here, which the caller replaces.
	if err := msg.EncodeTo(&buf, binary.LittleEndian); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

type rawClient struct {
	fd   int
	in   []byte
	have int
}

func (c *rawClient) write(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(c.fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (c *rawClient) read() error {
	for {
		n, err := unix.Read(c.fd, c.in[c.have:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = errors.New("the bus hangs up")
		}
		c.have += n
		return err
	}
}

func (c *rawClient) hello() error {
	if err := c.write([]byte("\x00AUTH EXTERNAL 30\r\n")); err != nil { // uid "0" in hex
		return err
	}
	for !bytes.HasSuffix(c.in[:c.have], []byte("\r\n")) {
		if err := c.read(); err != nil {
			return err
		}
	}
	if !bytes.HasPrefix(c.in, []byte("OK ")) {
		return fmt.Errorf("authenticate: %q", c.in[:c.have])
	}
	c.have = 0
	if err := c.write([]byte("BEGIN\r\n")); err != nil {
		return err
	}
	frame := encodeCall("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
	binary.LittleEndian.PutUint32(frame[8:], 1)
	return c.call(frame, 1)
}

// call sends a frame and waits for its reply, past signals.
func (c *rawClient) call(frame []byte, serial uint32) error {
	if err := c.write(frame); err != nil {
		return err
	}
	want := append([]byte{5, 1, 'u', 0}, binary.LittleEndian.AppendUint32(nil, serial)...)
	for {
		for c.have >= 16 {
			fields := int(binary.LittleEndian.Uint32(c.in[12:]))
			size := (16+fields+7)&^7 + int(binary.LittleEndian.Uint32(c.in[4:]))
			if size > len(c.in) {
				return fmt.Errorf("message of %d bytes", size)
			}
			if c.have < size {
				break
			}
			kind := c.in[1]
			ours := bytes.Contains(c.in[16:16+fields], want)
			c.have = copy(c.in, c.in[size:c.have])
			switch {
			case ours && kind == 3:
				return errors.New("an error came back")
			case ours:
				return nil
			}
		}
		if err := c.read(); err != nil {
			return err
		}
	}
}
