package dbus

import (
	"context"
	"reflect"

	godbus "github.com/godbus/dbus/v5"
)

// Limits of one sender. A caller that exceeds them is refused, and no other
// caller notices.
const (
	maxQueued      = 256     // calls taken in and not answered yet
	maxRunning     = 16      // calls being answered at once
	maxArgs        = 4 << 20 // bytes of arguments of one call
	maxQueuedBytes = 8 << 20 // bytes of arguments of the calls taken in
)

// Limits of one user, of all connections together, since the bus lets each have
// hundreds. What is below the free ones of a connection is not counted, so that
// the bus need not be asked who the sender of a single call is.
const (
	freeCalls    = 8
	freeBytes    = 64 << 10
	maxUserCalls = 1024
	maxUserBytes = 32 << 20
)

// load is what the calls of a user cost.
type load struct{ calls, bytes int }

// refuses says why a call is not taken in, if it is not. It needs Tree.mu.
func (s *sender) refuses(c *Call) error {
	switch {
	case len(s.calls) >= maxQueued:
		return Errorf(ErrorLimitsExceeded, "%s has more than %d calls waiting", c.Sender, maxQueued)
	case c.bytes > maxArgs:
		return Errorf(ErrorLimitsExceeded, "arguments of %s are longer than %d bytes", c.Member, maxArgs)
	case s.bytes+c.bytes > maxQueuedBytes:
		return Errorf(ErrorLimitsExceeded, "%s has more than %d bytes of arguments waiting", c.Sender, maxQueuedBytes)
	}
	return nil
}

// enter counts a call for the user who has sent it; leave undoes that. Root is
// held to the limits of a sender only.
func (t *Tree) enter(ctx context.Context, c *Call) (leave func(), err error) {
	creds, err := c.Credentials(ctx)
	if err != nil {
		return nil, err
	}
	if creds.UID == 0 {
		return func() {}, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.users[creds.UID]
	if l == nil {
		l = &load{}
		t.users[creds.UID] = l
	}
	if l.calls >= maxUserCalls || l.bytes+c.bytes > maxUserBytes {
		return nil, Errorf(ErrorLimitsExceeded, "user %d has more than %d calls, or %d bytes of arguments, waiting", creds.UID, maxUserCalls, maxUserBytes)
	}
	l.calls++
	l.bytes += c.bytes
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		l.calls--
		l.bytes -= c.bytes
		if l.calls == 0 && t.users[creds.UID] == l {
			delete(t.users, creds.UID)
		}
	}, nil
}

// argBytes is the size of decoded arguments, counted up to a little over limit.
func argBytes(args []any, limit int) int {
	n := 0
	var add func(v reflect.Value)
	add = func(v reflect.Value) {
		if n > limit || !v.IsValid() {
			return
		}
		n += 8
		switch v.Kind() {
		case reflect.String:
			n += v.Len()
		case reflect.Slice:
			if v.Type().Elem().Kind() == reflect.Uint8 {
				n += v.Len()
				return
			}
			for i := range v.Len() {
				add(v.Index(i))
			}
		case reflect.Map:
			for it := v.MapRange(); it.Next(); {
				add(it.Key())
				add(it.Value())
			}
		case reflect.Interface:
			add(v.Elem())
		case reflect.Struct:
			if variant, ok := v.Interface().(godbus.Variant); ok {
				add(reflect.ValueOf(variant.Value()))
			}
		default:
		}
	}
	for _, arg := range args {
		add(reflect.ValueOf(arg))
	}
	return n
}
