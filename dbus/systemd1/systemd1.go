// Package systemd1 is the unit backend over PID 1: scopes and spawner services
// by the D-Bus interface org.freedesktop.systemd1(5). It keeps a connection of
// its own, and makes a new one when the bus has gone away. It decides nothing:
// the registry says what to start, stop and kill.
package systemd1

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"machined/internal/sys"
	"machined/internal/unit"
)

const (
	busName        = "org.freedesktop.systemd1"
	managerPath    = godbus.ObjectPath("/org/freedesktop/systemd1")
	unitPrefix     = "/org/freedesktop/systemd1/unit/"
	managerIface   = busName + ".Manager"
	unitIface      = busName + ".Unit"
	propertiesGet  = "org.freedesktop.DBus.Properties.Get"
	noSuchUnit     = busName + ".NoSuchUnit"
	unitExists     = busName + ".UnitExists"
	unknownObject  = "org.freedesktop.DBus.Error.UnknownObject"
	unknownMethod  = "org.freedesktop.DBus.Error.UnknownMethod"
	unknownProp    = "org.freedesktop.DBus.Error.UnknownProperty"
	propReadOnly   = "org.freedesktop.DBus.Error.PropertyReadOnly"
	nameOwnerMatch = "type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',member='NameOwnerChanged',arg0='" + busName + "'"
)

// reconnectAfter is how long the backend waits between attempts to come back
// to the bus.
const reconnectAfter = 500 * time.Millisecond

// maxCalls bounds the calls that wait for replies: the system bus refuses more
// than 128 of a connection (max_replies_per_connection of dbus-daemon(1)), and a
// thousand machines that end at once ask about a thousand units.
const maxCalls = 64

// Config says how to reach PID 1.
type Config struct {
	// Dial makes a new connection. Signals must be delivered in their order:
	// godbus.NewSequentialSignalHandler.
	Dial func(ctx context.Context) (*godbus.Conn, error)
	Log  logrus.FieldLogger
}

// Backend talks to PID 1. It is safe for concurrent use.
type Backend struct {
	cfg    Config
	prefix string
	slots  chan struct{} // one for each call that waits for its reply
	// numbersOnly is set when PID 1 has been found to know no pidfds.
	numbersOnly atomic.Bool

	mu   sync.Mutex
	conn *godbus.Conn
	jobs map[godbus.ObjectPath]*pendingJob
	// early keeps how jobs ended whose number we have not been told yet: the
	// signal may overtake our reading of the reply.
	early     map[godbus.ObjectPath]string
	leaving   map[string][]chan struct{} // closed when PID 1 forgets the unit
	back      chan struct{}              // closed when PID 1 comes to the bus
	inCall    int
	event     func(unit.Event)
	watchDone chan struct{}
}

type pendingJob struct {
	unit string
	done chan error
}

// New connects to PID 1 and subscribes to its signals.
func New(ctx context.Context, cfg Config) (*Backend, error) {
	b := &Backend{
		cfg:   cfg,
		slots: make(chan struct{}, maxCalls),
		jobs:  map[godbus.ObjectPath]*pendingJob{},
		early: map[godbus.ObjectPath]string{},

		leaving: map[string][]chan struct{}{},
		back:    make(chan struct{}),
	}
	conn, signals, err := b.connect(ctx)
	if err != nil {
		return nil, err
	}
	b.conn = conn
	// The root of its tree; "" on most hosts, a path in a container without a
	// cgroup namespace and for a user's own manager.
	var v godbus.Variant
	if b.object(ctx, managerPath, propertiesGet, managerIface, "ControlGroup").Store(&v) == nil {
		b.prefix, _ = v.Value().(string)
	}
	b.watchDone = make(chan struct{})
	go b.run(conn, signals)
	return b, nil
}

// Close ends the connection; jobs that are under way fail.
func (b *Backend) Close() {
	b.mu.Lock()
	conn := b.conn
	b.conn = nil
	b.mu.Unlock()
	if conn != nil {
		_ = conn.Close()
	}
	<-b.watchDone
}

// CgroupPrefix is the cgroup that PID 1 manages.
func (b *Backend) CgroupPrefix() string { return b.prefix }

// CgroupOwner is who owns a cgroup, named as in proc_pid_cgroup(5).
func (b *Backend) CgroupOwner(path string) (uint32, error) {
	dir, err := cgroupDir(path)
	if err != nil {
		return 0, err
	}
	return sys.OwnerOf(dir)
}

func (b *Backend) connect(ctx context.Context) (*godbus.Conn, chan *godbus.Signal, error) {
	conn, err := b.cfg.Dial(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to PID 1: %w", err)
	}
	signals := make(chan *godbus.Signal, 256)
	conn.Signal(signals)
	rules := []string{
		"type='signal',sender='" + busName + "',interface='" + managerIface + "',path='" + string(managerPath) + "'",
		"type='signal',sender='" + busName + "',interface='org.freedesktop.DBus.Properties',member='PropertiesChanged',path_namespace='/org/freedesktop/systemd1/unit',arg0='" + unitIface + "'",
		nameOwnerMatch,
	}
	for _, rule := range rules {
		if err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.AddMatch", 0, rule).Err; err != nil {
			_ = conn.Close()
			return nil, nil, fmt.Errorf("watch PID 1: %w", err)
		}
	}
	err = conn.Object(busName, managerPath).CallWithContext(ctx, managerIface+".Subscribe", 0).Err
	if err != nil {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("subscribe to PID 1: %w", err)
	}
	return conn, signals, nil
}

// run handles signals in their order, and reconnects when they end.
func (b *Backend) run(conn *godbus.Conn, signals chan *godbus.Signal) {
	defer close(b.watchDone)
	for {
		for s := range signals {
			b.handle(s)
		}
		for {
			b.mu.Lock()
			over := b.conn != conn
			b.mu.Unlock()
			if over {
				b.failJobs(errors.New("connection to PID 1 closed"))
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			next, ch, err := b.connect(ctx)
			cancel()
			if err != nil {
				b.cfg.Log.WithError(err).Warn("PID 1 is out of reach.")
				// Nothing tells us when a bus comes back.
				<-time.After(reconnectAfter)
				continue
			}
			b.mu.Lock()
			if b.conn != conn {
				b.mu.Unlock()
				_ = next.Close()
				continue
			}
			b.conn = next
			b.mu.Unlock()
			conn, signals = next, ch
			b.cfg.Log.Info("Connected to PID 1 again.")
			b.recheck()
			break
		}
	}
}

// recheck is for when signals may have been lost.
func (b *Backend) recheck() {
	go b.recheckJobs()
	b.emit(unit.Event{})
}

func (b *Backend) emit(ev unit.Event) {
	b.mu.Lock()
	f := b.event
	b.mu.Unlock()
	if f != nil {
		f(ev)
	}
}

// Watch makes f hear of every unit that may have changed.
func (b *Backend) Watch(ctx context.Context, f func(unit.Event)) error {
	b.mu.Lock()
	b.event = f
	b.mu.Unlock()
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		b.event = nil
		b.mu.Unlock()
	})
	return nil
}

func (b *Backend) handle(s *godbus.Signal) {
	switch s.Name {
	case managerIface + ".JobRemoved":
		var id uint32
		var path godbus.ObjectPath
		var name, result string
		if godbus.Store(s.Body, &id, &path, &name, &result) == nil {
			b.jobEnded(path, name, result)
			b.emit(unit.Event{Unit: name})
		}
	case managerIface + ".UnitRemoved":
		var name string
		var path godbus.ObjectPath
		if godbus.Store(s.Body, &name, &path) == nil {
			b.left(name)
			b.emit(unit.Event{Unit: name})
		}
	case managerIface + ".Reloading":
		var active bool
		if godbus.Store(s.Body, &active) == nil && !active {
			b.recheck()
		}
	case "org.freedesktop.DBus.NameOwnerChanged":
		if len(s.Body) == 3 && s.Body[0] == busName && s.Body[2] != "" {
			// PID 1 has executed itself anew and is back on the bus.
			b.returned()
			b.recheck()
		}
	case "org.freedesktop.DBus.Properties.PropertiesChanged":
		if name, ok := unitOfPath(s.Path); ok {
			b.emit(unit.Event{Unit: name})
		}
	}
}

// unitOfPath undoes the escaping of sd_bus_path_encode(3).
func unitOfPath(path godbus.ObjectPath) (string, bool) {
	label, ok := strings.CutPrefix(string(path), unitPrefix)
	if !ok {
		return "", false
	}
	var out strings.Builder
	for i := 0; i < len(label); i++ {
		if label[i] != '_' {
			out.WriteByte(label[i])
			continue
		}
		if i+2 >= len(label) {
			return "", false
		}
		var c byte
		if _, err := fmt.Sscanf(label[i+1:i+3], "%02x", &c); err != nil {
			return "", false
		}
		out.WriteByte(c)
		i += 2
	}
	return out.String(), true
}

func pathOfUnit(name string) godbus.ObjectPath {
	var out strings.Builder
	out.WriteString(unitPrefix)
	for i := range len(name) {
		c := name[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || i > 0 && c >= '0' && c <= '9' {
			out.WriteByte(c)
			continue
		}
		fmt.Fprintf(&out, "_%02x", c)
	}
	return godbus.ObjectPath(out.String())
}

// call calls a method of the manager.
func (b *Backend) call(ctx context.Context, method string, args ...any) *godbus.Call {
	return b.object(ctx, managerPath, managerIface+"."+method, args...)
}

func (b *Backend) object(ctx context.Context, path godbus.ObjectPath, method string, args ...any) *godbus.Call {
	b.mu.Lock()
	conn := b.conn
	b.mu.Unlock()
	if conn == nil {
		return &godbus.Call{Err: errors.New("connection to PID 1 closed")}
	}
	select {
	case b.slots <- struct{}{}:
		defer func() { <-b.slots }()
	case <-ctx.Done():
		return &godbus.Call{Err: ctx.Err()}
	}
	return conn.Object(busName, path).CallWithContext(ctx, method, 0, args...)
}

// busError returns the error of the bus that err is or wraps.
func busError(err error) (de godbus.Error, ok bool) {
	ok = errors.As(err, &de)
	return de, ok
}

func isError(err error, names ...string) bool {
	de, ok := busError(err)
	if !ok {
		return false
	}
	for _, name := range names {
		if de.Name == name {
			return true
		}
	}
	return false
}

// Stop enqueues a stop job. A unit that PID 1 does not know is no error.
func (b *Backend) Stop(ctx context.Context, name string) error {
	_, err := b.insist(ctx, func() error { return b.call(ctx, "StopUnit", name, "fail").Err })
	if isError(err, noSuchUnit) {
		return nil
	}
	return wrap("stop unit", name, err)
}

func wrap(what, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %q: %w", what, name, err)
}

// Kill signals the processes of a unit, or those of one cgroup below it. PID 1
// has a method for the latter since systemd 258; before, each process is
// signalled from here.
func (b *Backend) Kill(ctx context.Context, name, subgroup string, sig unix.Signal) error {
	if subgroup == "" {
		return wrap("kill unit", name, b.call(ctx, "KillUnit", name, "all", int32(sig)).Err)
	}
	err := b.call(ctx, "KillUnitSubgroup", name, "cgroup", subgroup, int32(sig)).Err
	if !isError(err, unknownMethod) {
		return wrap("kill unit", name, err)
	}
	cg, err := b.controlGroup(ctx, name)
	if err != nil {
		return wrap("kill unit", name, err)
	}
	return wrap("kill unit", name, signalCgroup(cg, subgroup, sig))
}

// controlGroup returns the cgroup of a unit, as PID 1 sees it.
func (b *Backend) controlGroup(ctx context.Context, name string) (string, error) {
	iface := busName + ".Service"
	if strings.HasSuffix(name, ".scope") {
		iface = busName + ".Scope"
	}
	var v godbus.Variant
	if err := b.object(ctx, pathOfUnit(name), propertiesGet, iface, "ControlGroup").Store(&v); err != nil {
		return "", err
	}
	cg, _ := v.Value().(string)
	if cg == "" {
		return "", os.ErrNotExist
	}
	return cg, nil
}

// Active asks for the state of a unit.
func (b *Backend) Active(ctx context.Context, name string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 25*time.Second)
	defer cancel()
	var v godbus.Variant
	err := b.object(ctx, pathOfUnit(name), propertiesGet, unitIface, "ActiveState").Store(&v)
	if isError(err, noSuchUnit, unknownObject) {
		return false, nil
	}
	if err != nil {
		return false, wrap("get state of unit", name, err)
	}
	state, _ := v.Value().(string)
	return state != "inactive" && state != "failed", nil
}

// Console is the journal's task where PID 1 is systemd.
func (b *Backend) Console(string, int) ([]byte, error) { return nil, errors.ErrUnsupported }
