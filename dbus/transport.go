package dbus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// maxFDs is the most descriptors that one message may carry (SCM_MAX_FD of
// unix(7)).
const maxFDs = 253

// wire is the stream below a godbus connection. It exists because godbus' own
// socket transport panics on an array of descriptors ("ah") in a message, and
// loses descriptors that a message carries but does not name; either would let
// any caller end or drain a daemon. So godbus is given a plain stream, and
// descriptors travel beside it: incoming ones queue up here in the order of the
// messages and are handed out by the incoming interceptor, outgoing messages
// with descriptors are encoded by the outgoing interceptor and take the place
// of the frame that godbus writes for them.
type wire struct {
	sock *net.UnixConn

	// Reader's side: used by one goroutine, godbus' reader, which also runs the
	// incoming interceptor.
	in     []byte // a buffer; rest is the part of it that is still to be used
	rest   []byte
	oob    []byte
	fds    []int
	pass   int    // bytes of rest and what follows it that godbus is to get
	out    []byte // replies that wait to be written
	one    []byte
	serial uint32
	waits  uint
	tree   *Tree

	begun atomic.Bool             // the authentication is over
	plain atomic.Bool             // the bus passes no descriptors, as through ssh(1)
	swap  sync.RWMutex            // held over calls on sock, and to replace it
	file  atomic.Pointer[os.File] // takes the place of sock when we serve

	mu     sync.Mutex
	frames map[uint32]frame // messages encoded here, by serial
}

type frame struct {
	data []byte
	fds  []int
}

func dialUnix(ctx context.Context, address string) (*net.UnixConn, error) {
	rest, ok := strings.CutPrefix(address, "unix:")
	if !ok {
		return nil, fmt.Errorf("connect to bus: address %q is not a unix: address", address)
	}
	name := ""
	for pair := range strings.SplitSeq(rest, ",") {
		key, value, _ := strings.Cut(pair, "=")
		value, err := url.PathUnescape(value)
		if err != nil {
			return nil, fmt.Errorf("connect to bus: address %q: %w", address, err)
		}
		switch key {
		case "path":
			name = value
		case "abstract":
			name = "@" + value
		}
	}
	if name == "" {
		return nil, fmt.Errorf("connect to bus: address %q names no socket", address)
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", name)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// FromSocket authenticates on a connected socket of a message bus as the
// calling process and says Hello. It takes sock over, also when it fails.
func FromSocket(ctx context.Context, sock *net.UnixConn) (*godbus.Conn, error) {
	w := &wire{sock: sock, in: make([]byte, 64<<10), oob: make([]byte, unix.CmsgSpace(4*maxFDs)), frames: map[uint32]frame{}}
	tree := newTree()
	w.tree, tree.wire = tree, w
	conn, err := godbus.NewConn(w,
		godbus.WithContext(context.WithValue(context.WithoutCancel(ctx), treeKey{}, tree)),
		godbus.WithSignalHandler(godbus.NewSequentialSignalHandler()),
		godbus.WithIncomingInterceptor(func(msg *godbus.Message) { tree.incoming(msg, w.attach(msg)) }),
		godbus.WithOutgoingInterceptor(w.detach),
	)
	if err != nil {
		_ = sock.Close()
		return nil, err
	}
	tree.conn = conn
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	err = conn.Auth(nil)
	if err == nil {
		err = conn.Hello()
	}
	if !stop() && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

func (w *wire) takeFDs(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for i := range messages {
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil {
			w.fds = append(w.fds, fds...)
		}
	}
}

// attach puts the descriptors of an incoming message into its body and returns
// all that came with it, also those that the body does not name.
func (w *wire) attach(msg *godbus.Message) []int {
	count, _ := msg.Headers[godbus.FieldUnixFDs].Value().(uint32)
	n := min(int(count), len(w.fds))
	fds := w.fds[:n:n]
	w.fds = w.fds[n:]
	if len(w.fds) == 0 {
		w.fds = nil // the array behind it is the caller's now
	}
	for i, value := range msg.Body {
		msg.Body[i] = replaceFDs(value, fds)
	}
	return fds
}

// replaceFDs turns the indices in a decoded value into descriptors, -1 for an
// index out of range. Arrays of descriptors become []godbus.UnixFD.
func replaceFDs(value any, fds []int) any {
	switch v := value.(type) {
	case godbus.UnixFDIndex:
		if int(v) >= len(fds) {
			return godbus.UnixFD(-1)
		}
		return godbus.UnixFD(fds[v])
	case []godbus.UnixFDIndex:
		out := make([]godbus.UnixFD, len(v))
		for i, index := range v {
			out[i] = replaceFDs(index, fds).(godbus.UnixFD)
		}
		return out
	case godbus.Variant:
		if !strings.ContainsAny(v.Signature().String(), "hv") {
			return v
		}
		return godbus.MakeVariantWithSignature(replaceFDs(v.Value(), fds), v.Signature())
	case []any:
		for i := range v {
			v[i] = replaceFDs(v[i], fds)
		}
		return v
	case [][]any:
		for i := range v {
			replaceFDs(v[i], fds)
		}
		return v
	case []godbus.Variant:
		for i := range v {
			v[i] = replaceFDs(v[i], fds).(godbus.Variant)
		}
		return v
	case map[string]godbus.Variant:
		for key := range v {
			v[key] = replaceFDs(v[key], fds).(godbus.Variant)
		}
		return v
	}
	return value
}

// detach encodes an outgoing message that carries descriptors, or that encodes
// itself, and leaves an empty one to godbus whose frame Write replaces.
func (w *wire) detach(msg *godbus.Message) {
	if data := appended(msg); data != nil {
		w.mu.Lock()
		w.frames[msg.Serial()] = frame{data: data}
		w.mu.Unlock()
		msg.Body = nil
		delete(msg.Headers, godbus.FieldSignature)
		return
	}
	if !mayHoldFD(msg.Body) {
		return
	}
	count, err := msg.CountFds()
	if err != nil || count == 0 {
		return
	}
	msg.Headers[godbus.FieldUnixFDs] = godbus.MakeVariant(uint32(count))
	var buf bytes.Buffer
	fds, err := msg.EncodeToWithFDs(&buf, binary.LittleEndian) // each message says its own order
	if err != nil {
		return // godbus meets the same error and reports it
	}
	w.mu.Lock()
	w.frames[msg.Serial()] = frame{data: buf.Bytes(), fds: fds}
	w.mu.Unlock()
	msg.Body = nil
	delete(msg.Headers, godbus.FieldUnixFDs)
	delete(msg.Headers, godbus.FieldSignature)
}

// mayHoldFD spares messages of plain values the encoding that counting costs.
func mayHoldFD(body []any) bool {
	for _, value := range body {
		switch value.(type) {
		case string, godbus.ObjectPath, uint32, int32, uint64, bool, []string, []byte:
			continue
		}
		if strings.ContainsAny(godbus.SignatureOfType(reflect.TypeOf(value)).String(), "hv") {
			return true
		}
	}
	return false
}

var (
	beginLine     = []byte("BEGIN\r\n")
	negotiateLine = []byte("NEGOTIATE_UNIX_FD\r\n")
)

// Write sends one frame; godbus writes each message with one call, under a lock.
func (w *wire) Write(b []byte) (int, error) {
	var f frame
	found := false
	begun := w.begun.Load()
	if begun && len(b) >= 16 {
		serial := binary.NativeEndian.Uint32(b[8:12])
		w.mu.Lock()
		if f, found = w.frames[serial]; found {
			delete(w.frames, serial)
		}
		w.mu.Unlock()
	}
	switch {
	case found:
		return len(b), w.writeFrame(f)
	case !begun && bytes.Equal(b, beginLine):
		if err := w.negotiate(); err != nil {
			return 0, err
		}
		w.begun.Store(true)
	}
	return len(b), w.send(b)
}

func (w *wire) writeFrame(f frame) error {
	if len(f.fds) == 0 {
		return w.send(f.data)
	}
	if w.plain.Load() {
		return unix.EOPNOTSUPP
	}
	return w.sendFDs(f.data, f.fds)
}

// negotiate asks the bus to pass descriptors (D-Bus specification,
// "Authentication Protocol"); godbus is about to send BEGIN. A bus that can't is
// of use for all else.
func (w *wire) negotiate() error {
	if err := w.send(negotiateLine); err != nil {
		return err
	}
	var line []byte
	for b := make([]byte, 1); !bytes.HasSuffix(line, []byte("\r\n")); {
		if len(line) > 1024 {
			return errors.New("negotiate file descriptors: answer of bus is too long")
		}
		if _, err := io.ReadFull(w, b); err != nil {
			return err
		}
		line = append(line, b[0])
	}
	switch {
	case bytes.HasPrefix(line, []byte("AGREE_UNIX_FD")):
		return nil
	case bytes.HasPrefix(line, []byte("ERROR")):
		w.plain.Store(true)
		return nil
	}
	return fmt.Errorf("negotiate file descriptors: bus says %q", bytes.TrimSpace(line))
}
