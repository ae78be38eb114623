package systemd1

import (
	"context"
	"strings"
	"time"

	"machined/internal/sys"
	"machined/internal/unit"
)

const (
	dbusError  = "org.freedesktop.DBus.Error."
	noReply    = dbusError + "NoReply"
	spawnError = dbusError + "Spawn."
)

// awayPatience is how long PID 1 may take to come back to the bus after it has
// executed itself anew (systemctl daemon-reexec).
const awayPatience = 10 * time.Second

// away reports whether err says that PID 1 has left the bus, or is not on it. A
// call that met its departure may have been carried out.
func away(err error) bool {
	if isError(err, noReply, dbusError+"ServiceUnknown", dbusError+"NameHasNoOwner") {
		return true
	}
	var name string
	if de, ok := busError(err); ok {
		name = de.Name
	}
	return strings.HasPrefix(name, spawnError)
}

// insist makes a call that may be made twice, and makes it again when PID 1 was
// away. It tells whether it has.
func (b *Backend) insist(ctx context.Context, call func() error) (twice bool, err error) {
	err = call()
	if !away(err) {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, awayPatience)
	defer cancel()
	for away(err) {
		if !b.awaitReturn(ctx) {
			return twice, err
		}
		twice = true
		err = call()
	}
	return twice, err
}

// awaitReturn waits until PID 1 is on the bus.
func (b *Backend) awaitReturn(ctx context.Context) bool {
	for {
		b.mu.Lock()
		back, conn := b.back, b.conn
		b.mu.Unlock()
		if conn == nil {
			return false
		}
		var owner string
		if conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, busName).Store(&owner) == nil {
			return true
		}
		select {
		case <-back:
		case <-ctx.Done():
			return false
		}
	}
}

// returned wakes who waits for PID 1.
func (b *Backend) returned() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.back)
	b.back = make(chan struct{})
}

// holds reports whether a scope is there and has the leader in it.
func (b *Backend) holds(ctx context.Context, s unit.Scope) bool {
	scope, err := b.controlGroup(ctx, s.Name)
	if err != nil {
		return false
	}
	own, err := sys.CgroupOf(s.Leader.PID())
	return err == nil && (own == scope || strings.HasPrefix(own, scope+"/")) && s.Leader.Alive()
}
