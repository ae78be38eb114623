package dbus

import (
	"context"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	godbus "github.com/godbus/dbus/v5"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Tree is the objects that a connection answers for. The zero number of
// objects answers UnknownObject to everything.
type Tree struct {
	conn   *godbus.Conn // both are set once, before the first message
	wire   *wire
	memory memory

	mu      sync.Mutex
	log     logrus.FieldLogger
	nodes   map[string]*node
	quick   map[string]quickMethod // by quickKey
	senders map[string]*sender
	users   map[uint32]*load
	serving bool
	calls   sync.WaitGroup
}

// sender is one peer that has called us and is still on the bus.
type sender struct {
	running chan struct{}
	calls   map[*Call]context.CancelFunc
	bytes   int // of the arguments of calls
	creds   *Credentials
}

func newTree() *Tree {
	return &Tree{nodes: map[string]*node{}, senders: map[string]*sender{}, users: map[uint32]*load{}, log: discard()}
}

func discard() logrus.FieldLogger {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return log
}

// SetLog sets where errors of our own are logged to.
func (t *Tree) SetLog(log logrus.FieldLogger) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.log = log
}

// Add puts an object at path.
func (t *Tree) Add(path godbus.ObjectPath, object any, interfaces ...*Interface) {
	for _, i := range interfaces {
		i.index()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nodes[string(path)] = &node{interfaces: interfaces, object: object}
	t.addQuick(string(path), interfaces)
}

// AddChildren puts objects that come and go below path.
func (t *Tree) AddChildren(path godbus.ObjectPath, children Children) {
	for _, i := range children.Interfaces {
		i.index()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nodes[string(path)] = &node{children: &children}
}

// Watch subscribes to the departures of peers, so that the contexts of their
// calls end, and makes the connection a server's. Call it before a name is
// requested.
func (t *Tree) Watch(ctx context.Context) error {
	t.mu.Lock()
	done := t.serving
	t.serving = true
	t.mu.Unlock()
	if done {
		return nil
	}
	rule := "type='signal',sender='org.freedesktop.DBus',path='/org/freedesktop/DBus'," +
		"interface='org.freedesktop.DBus',member='NameOwnerChanged',arg2=''"
	if err := t.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.AddMatch", 0, rule).Err; err != nil {
		return fmt.Errorf("watch peers on the bus: %w", err)
	}
	if err := t.wire.serve(); err != nil {
		return fmt.Errorf("serve the bus: %w", err)
	}
	return nil
}

// Wait returns when all calls have been answered.
func (t *Tree) Wait() { t.calls.Wait() }

// Emit sends a signal.
func (t *Tree) Emit(path godbus.ObjectPath, iface, member string, values ...any) error {
	return t.conn.Emit(path, iface+"."+member, values...)
}

// EmitTo sends a signal to the peer with the unique name to, and nobody else.
func (t *Tree) EmitTo(to string, path godbus.ObjectPath, iface, member string, values ...any) error {
	msg := &godbus.Message{Type: godbus.TypeSignal, Flags: godbus.FlagNoReplyExpected, Body: values, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldDestination: godbus.MakeVariant(to),
		godbus.FieldPath:        godbus.MakeVariant(path),
		godbus.FieldInterface:   godbus.MakeVariant(iface),
		godbus.FieldMember:      godbus.MakeVariant(member),
	}}
	if len(values) > 0 {
		msg.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(values...))
	}
	return t.conn.Send(msg, nil).Err
}

// incoming runs in godbus' reader for each message, with the descriptors that
// came with it. It takes calls away from godbus, which would start a goroutine
// for each without bound and decode arguments loosely; and it sees the
// departure of a peer in order with that peer's calls.
func (t *Tree) incoming(msg *godbus.Message, fds []int) {
	switch msg.Type {
	case godbus.TypeMethodCall:
		t.take(msg, fds)
		msg.Type = 0 // godbus ignores a type that it does not know
		return
	case godbus.TypeSignal:
		closeFDs(fds, nil)
		if header(msg, godbus.FieldMember) == "NameOwnerChanged" && header(msg, godbus.FieldSender) == "org.freedesktop.DBus" && len(msg.Body) == 3 {
			name, _ := msg.Body[0].(string)
			if owner, _ := msg.Body[2].(string); owner == "" && strings.HasPrefix(name, ":") {
				t.left(name)
			}
		}
	default:
		closeFDs(fds, msg.Body)
	}
}

func header(msg *godbus.Message, field godbus.HeaderField) string {
	switch v := msg.Headers[field].Value().(type) {
	case string:
		return v
	case godbus.ObjectPath:
		return string(v)
	case godbus.Signature:
		return v.String()
	}
	return ""
}

// closeFDs closes descriptors but those that body names.
func closeFDs(fds []int, body []any) {
	if len(fds) == 0 {
		return
	}
	var named []int
	if body != nil {
		named = namedFDs(reflect.ValueOf(body), nil)
	}
	for _, fd := range fds {
		if !slices.Contains(named, fd) {
			_ = unix.Close(fd)
		}
	}
}

func namedFDs(v reflect.Value, out []int) []int {
	if !v.IsValid() {
		return out
	}
	if v.CanInterface() {
		switch x := v.Interface().(type) {
		case godbus.UnixFD:
			return append(out, int(x))
		case godbus.Variant:
			return namedFDs(reflect.ValueOf(x.Value()), out)
		}
	}
	switch v.Kind() {
	case reflect.Slice:
		for i := range v.Len() {
			out = namedFDs(v.Index(i), out)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			out = namedFDs(it.Value(), out)
		}
	case reflect.Interface:
		return namedFDs(v.Elem(), out)
	default:
	}
	return out
}

// left ends the calls of a peer that has left the bus.
func (t *Tree) left(name string) {
	t.mu.Lock()
	s := t.senders[name]
	delete(t.senders, name)
	var cancel []context.CancelFunc
	if s != nil {
		for _, f := range s.calls {
			cancel = append(cancel, f)
		}
	}
	t.mu.Unlock()
	for _, f := range cancel {
		f()
	}
	if s != nil && s.creds != nil {
		s.creds.close()
	}
}

// take queues one call.
func (t *Tree) take(msg *godbus.Message, fds []int) {
	c := &Call{
		Sender:      header(msg, godbus.FieldSender),
		Path:        godbus.ObjectPath(header(msg, godbus.FieldPath)),
		Interface:   header(msg, godbus.FieldInterface),
		Member:      header(msg, godbus.FieldMember),
		Args:        msg.Body,
		Interactive: msg.Flags&godbus.FlagAllowInteractiveAuthorization != 0,
		tree:        t,
		serial:      msg.Serial(),
		noReply:     msg.Flags&godbus.FlagNoReplyExpected != 0,
		fds:         fds,
	}
	sig := header(msg, godbus.FieldSignature)
	if c.bytes = argBytes(c.Args, maxArgs); c.bytes >= bigArgs {
		t.memory.releaseSoon()
	}
	ctx, cancel := context.WithCancel(t.conn.Context())
	t.mu.Lock()
	s := t.senders[c.Sender]
	if s == nil {
		s = &sender{running: make(chan struct{}, maxRunning), calls: map[*Call]context.CancelFunc{}}
		t.senders[c.Sender] = s
	}
	refused := s.refuses(c)
	if refused == nil {
		s.calls[c] = cancel
		s.bytes += c.bytes
		t.calls.Add(1)
	}
	crowded := len(s.calls) > freeCalls || s.bytes > freeBytes
	t.mu.Unlock()
	if refused != nil {
		cancel()
		c.Args = nil
		closeFDs(fds, nil)
		t.fail(c, refused)
		return
	}
	go func() {
		defer cancel()
		defer t.done(s, c)
		defer closeFDs(fds, nil)
		if crowded {
			leave, err := t.enter(ctx, c)
			if err != nil {
				t.fail(c, err)
				return
			}
			defer leave()
		}
		select {
		case s.running <- struct{}{}:
			defer func() { <-s.running }()
		case <-ctx.Done():
			return
		}
		t.answer(ctx, c, sig)
	}()
}

func (t *Tree) done(s *sender, c *Call) {
	t.mu.Lock()
	delete(s.calls, c)
	s.bytes -= c.bytes
	t.mu.Unlock()
	t.calls.Done()
}

// answer finds the method, compares signatures, runs the handler and replies.
func (t *Tree) answer(ctx context.Context, c *Call, sig string) {
	values, err := t.run(ctx, c, sig)
	if err != nil {
		closeFiles(values)
		if ctx.Err() == nil {
			t.fail(c, err)
		}
		return
	}
	t.reply(c, values)
}

func (t *Tree) run(ctx context.Context, c *Call, sig string) (values []any, err error) {
	defer func() {
		if r := recover(); r != nil {
			t.log.WithField("method", c.Member).WithField("sender", c.Sender).
				WithField("stack", string(debug.Stack())).Errorf("method call panicked: %v", r)
			values, err = nil, Errorf(ErrorFailed, "internal error in %s", c.Member)
		}
	}()
	method, object, err := t.find(ctx, c)
	if err != nil {
		return nil, err
	}
	if want := signature(method.In); sig != want {
		return nil, Errorf(ErrorInvalidArgs, "Invalid arguments '%s' to call %s.%s(), expecting '%s'.", sig, c.Interface, c.Member, want)
	}
	values, err = method.Handler(ctx, c, object)
	if err != nil {
		return values, err
	}
	if got, want := outSignature(values), signature(method.Out); got != want {
		t.log.WithField("method", c.Member).Errorf("reply has signature %q, not %q", got, want)
		return values, Errorf(ErrorFailed, "internal error in %s: reply has the wrong signature", c.Member)
	}
	return values, nil
}

// outSignature is the signature of a reply, in which a file is a descriptor and
// orderedProperties are a dictionary.
func outSignature(values []any) string {
	var b strings.Builder
	for _, v := range values {
		if _, ok := v.(*os.File); ok {
			b.WriteByte('h')
			continue
		}
		switch v.(type) {
		case orderedProperties:
			b.WriteString("a{sv}")
			continue
		case OrderedStrings:
			b.WriteString("a{ss}")
			continue
		}
		b.WriteString(godbus.SignatureOfType(reflect.TypeOf(v)).String())
	}
	return b.String()
}

func closeFiles(values []any) {
	for _, v := range values {
		if f, ok := v.(*os.File); ok && f != nil {
			_ = f.Close()
		}
	}
}

func (t *Tree) reply(c *Call, values []any) {
	defer closeFiles(values)
	if c.noReply {
		return
	}
	body := make([]any, len(values))
	for i, v := range values {
		if f, ok := v.(*os.File); ok {
			v = godbus.UnixFD(f.Fd())
		}
		body[i] = v
	}
	msg := &godbus.Message{Type: godbus.TypeMethodReply, Body: body, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldReplySerial: godbus.MakeVariant(c.serial),
	}}
	if len(body) > 0 {
		msg.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.ParseSignatureMust(outSignature(values)))
	}
	t.send(c, msg)
}

func (t *Tree) fail(c *Call, err error) {
	if c.noReply {
		return
	}
	msg := &godbus.Message{Type: godbus.TypeError, Body: []any{errorText(err)}, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldReplySerial: godbus.MakeVariant(c.serial),
		godbus.FieldErrorName:   godbus.MakeVariant(NameOf(err)),
		godbus.FieldSignature:   godbus.MakeVariant(godbus.SignatureOf("")),
	}}
	t.send(c, msg)
}

func (t *Tree) send(c *Call, msg *godbus.Message) {
	if c.Sender != "" {
		msg.Headers[godbus.FieldDestination] = godbus.MakeVariant(c.Sender)
	}
	// An error here means that the connection is down, which its owner sees.
	_ = t.conn.Send(msg, nil).Err
}
