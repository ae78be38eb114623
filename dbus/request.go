package dbus

import (
	"context"

	godbus "github.com/godbus/dbus/v5"
)

// Request names a method of an object of a service.
type Request struct {
	Service   string
	Path      godbus.ObjectPath
	Interface string
	Method    string
	// Interactive lets the service ask a person for authorisation.
	Interactive bool
}

// Invoke calls the method and waits for its answer, an error, or the end of
// ctx. It is what clients use where the service may have to ask somebody:
// godbus.Object.Call only passes FlagNoReplyExpected on and drops the flag
// ALLOW_INTERACTIVE_AUTHORIZATION (D-Bus specification, "Message Format").
func Invoke(ctx context.Context, conn *godbus.Conn, r Request, args ...any) *godbus.Call {
	msg := &godbus.Message{Type: godbus.TypeMethodCall, Body: args, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldDestination: godbus.MakeVariant(r.Service),
		godbus.FieldPath:        godbus.MakeVariant(r.Path),
		godbus.FieldInterface:   godbus.MakeVariant(r.Interface),
		godbus.FieldMember:      godbus.MakeVariant(r.Method),
	}}
	if r.Interactive {
		msg.Flags |= godbus.FlagAllowInteractiveAuthorization
	}
	if len(args) > 0 {
		msg.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(args...))
	}
	call := conn.SendWithContext(ctx, msg, make(chan *godbus.Call, 1))
	<-call.Done
	return call
}
