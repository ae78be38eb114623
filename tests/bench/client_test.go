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

// This test program is its own client inside of a host, and its own clock there: started with
// $BENCH_CLIENT it calls the Manager over and over and prints how long each
// call took, in ns. It writes prepared bytes and decodes nothing, so that what
// is timed is the daemon and the bus and not a bus library.

// benchClient runs the client if that is what was asked for.
func benchClient() {
	spec := os.Getenv("BENCH_CLIENT")
	words := strings.Fields(spec)
	if len(words) == 0 {
		return
	}
	var err error
	switch words[0] {
	case "time":
		err = runTimer()
	case "mix":
		err = runMix(words[1:])
	case "serve":
		err = serve()
	case "CreateMachine", "RegisterMachine":
		err = runMaker(words[0], words[1:])
	default:
		err = runClient(words)
	}
	if err != nil {
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
	c, err := dialRaw()
	if err != nil {
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
		if took[i], err = c.timed(frames[i%len(frames)]); err != nil {
			return fmt.Errorf("call %d of %s: %w", i, words[0], err)
		}
	}
	return printTimes(took)
}

// runMix asks, until it is killed, what clients ask of the machines of some leaders
// and of their owners: lists, single machines, properties, addresses, releases. Errors
// are answers, too.
func runMix(leaders []string) error {
	c, err := dialRaw()
	if err != nil {
		return err
	}
	const dest, path, manager, machine = "org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager", "org.freedesktop.machine1.Machine"
	const properties = "org.freedesktop.DBus.Properties"
	var frames [][]byte
	for _, leader := range leaders {
		name := "m" + leader
		object := path + "/machine/" + name
		frames = append(frames,
			encodeCall(dest, path, manager, "GetMachine", name),
			encodeCall(dest, object, properties, "Get", machine, "Leader"),
			encodeCall(dest, path, manager, "GetMachineAddresses", name),
			encodeCall(dest, object, properties, "GetAll", machine),
			encodeCall(dest, path, manager, "GetMachineOSRelease", name),
			encodeCall(dest, path, manager, "ListMachines"),
			encodeCall(dest, path, manager, "GetMachineUIDShift", name),
		)
	}
	for i := 0; ; i++ {
		if _, err := c.timed(frames[i%len(frames)]); err != nil && !errors.Is(err, errReply) {
			return err
		}
	}
}

// runMaker makes a machine of each leader. Registered ones are taken back at once:
// the leader may be the same for all.
func runMaker(method string, leaders []string) error {
	c, err := dialRaw()
	if err != nil {
		return err
	}
	manager := func(method string, args ...any) []byte {
		return encodeCall("org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager", method, args...)
	}
	var took []time.Duration
	for i, leader := range leaders {
		pid, err := strconv.ParseUint(leader, 10, 32)
		if err != nil {
			return err
		}
		name := "m" + leader
		args := []any{name, make([]byte, 16), "bench", "container", uint32(pid), ""}
		if method == "CreateMachine" {
			args = append(args, []struct {
				Name  string
				Value godbus.Variant
			}{})
		}
		t, err := c.timed(manager(method, args...))
		if err == nil && method == "RegisterMachine" {
			_, err = c.timed(manager("UnregisterMachine", name))
		}
		if err != nil {
			return fmt.Errorf("%s %d of %s: %w", method, i, name, err)
		}
		took = append(took, t)
	}
	return printTimes(took)
}

func printTimes(took []time.Duration) error {
	var out bytes.Buffer
	for _, t := range took {
		fmt.Fprintln(&out, t.Nanoseconds())
	}
	_, err := os.Stdout.Write(out.Bytes())
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
	fd     int
	in     []byte
	have   int
	serial uint32 // of the last call
}

func dialRaw() (*rawClient, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: "/run/dbus/system_bus_socket"}); err != nil {
		return nil, err
	}
	c := &rawClient{fd: fd, in: make([]byte, 1<<20)}
	return c, c.hello()
}

// timed makes a call and tells how long the reply took.
func (c *rawClient) timed(frame []byte) (time.Duration, error) {
	c.serial++
	binary.LittleEndian.PutUint32(frame[8:], c.serial)
	start := time.Now()
	err := c.call(frame, c.serial)
	return time.Since(start), err
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
	_, err := c.timed(frame)
	return err
}

// errReply is a call's answer that is an error.
var errReply = errors.New("an error came back")

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
				return errReply
			case ours:
				return nil
			}
		}
		if err := c.read(); err != nil {
			return err
		}
	}
}
