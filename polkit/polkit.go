// Package polkit answers one question: may this sender do this action. It asks
// polkit's authority on the bus each time, keeps no answer, and says no on any
// doubt. What is asked, and for whom no question is needed, is decided by the
// caller.
package polkit

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

// Errors of Check.
var (
	// ErrDenied means that the sender may not do the action.
	ErrDenied = errors.New("access denied")
	// ErrInteractionRequired means that the sender may do it once a person has
	// authenticated, and that the call did not allow to ask.
	ErrInteractionRequired = errors.New("interactive authentication required")
)

const (
	busName       = "org.freedesktop.PolicyKit1"
	authorityPath = godbus.ObjectPath("/org/freedesktop/PolicyKit1/Authority")
	authorityName = busName + ".Authority"
)

// flagAllowUserInteraction is AllowUserInteraction of CheckAuthorizationFlags.
const flagAllowUserInteraction = 1

// quietTimeout bounds a check that asks nobody. An interactive one waits for a
// person, until the caller leaves.
const quietTimeout = 25 * time.Second

// Authority asks polkit. It is safe for concurrent use.
type Authority struct {
	conn *godbus.Conn
	ids  atomic.Uint64
}

// New returns the authority on the bus of conn.
func New(conn *godbus.Conn) *Authority { return &Authority{conn: conn} }

// subject is polkit's Subject structure.
type subject struct {
	Kind    string
	Details map[string]godbus.Variant
}

// result is polkit's AuthorizationResult structure.
type result struct {
	Authorized bool
	Challenge  bool
	Details    map[string]string
}

// Check asks whether the peer with the unique bus name sender may do action.
// The caller must already have let root through: where no polkit answers,
// everybody else is denied. When ctx ends, so does polkit's dialog.
func (a *Authority) Check(ctx context.Context, sender, action string, details map[string]string, interactive bool) error {
	who := subject{Kind: "system-bus-name", Details: map[string]godbus.Variant{"name": godbus.MakeVariant(sender)}}
	return a.check(ctx, who, sender, action, details, interactive)
}

// check asks for the subject who; sender is its name in messages.
func (a *Authority) check(ctx context.Context, who subject, sender, action string, details map[string]string, interactive bool) error {
	if details == nil {
		details = map[string]string{}
	}
	var flags uint32
	if interactive {
		flags |= flagAllowUserInteraction
	} else {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, quietTimeout)
		defer cancel()
	}
	id := "machined-" + strconv.FormatUint(a.ids.Add(1), 10)
	object := a.conn.Object(busName, authorityPath)
	call := object.CallWithContext(ctx, authorityName+".CheckAuthorization", 0, who, action, details, flags, id)
	if ctx.Err() != nil {
		// Nobody waits for the answer, but a dialog may still be open.
		object.Go(authorityName+".CancelCheckAuthorization", godbus.FlagNoReplyExpected|godbus.FlagNoAutoStart, nil, id)
		return fmt.Errorf("check %s for %s: %w: %w", action, sender, ErrDenied, context.Cause(ctx))
	}
	if err := decide(call); err != nil {
		return fmt.Errorf("check %s for %s: %w", action, sender, err)
	}
	return nil
}

// decide reads polkit's answer. Any doubt is a no.
func decide(call *godbus.Call) error {
	var answer result
	if err := call.Store(&answer); err != nil {
		return fmt.Errorf("%w (no answer from polkit: %v)", ErrDenied, err)
	}
	switch {
	case answer.Authorized:
		return nil
	case answer.Challenge:
		// Also when asking was allowed: no agent was there to ask.
		return ErrInteractionRequired
	}
	return ErrDenied
}
