package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/spawn"
)

const serviceName = "systemd-nspawn"

// bus is the way to machined and PID 1. It connects when it is first used, and
// again when the bus was restarted.
type bus struct {
	mu    sync.Mutex
	conn  *godbus.Conn
	stops chan struct{}
	// control is the connection on which PID 1 says that the scope is to stop.
	control *control
	// watching is the connection on which PID 1 tells of jobs and units already.
	watching *godbus.Conn
	// scoped is the connection that refers to the scope of the last run.
	scoped *godbus.Conn
}

func newBus() *bus { return &bus{stops: make(chan struct{}, 1)} }

// warm connects while something else is done. What fails will fail again, and be
// told, when the connection is needed.
func (b *bus) warm() {
	go func() { _, _ = b.connect(context.Background()) }()
}

func (b *bus) connect(ctx context.Context) (*godbus.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil && b.conn.Connected() {
		return b.conn, nil
	}
	conn, err := dbus.ConnectSystem(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to bus: %w", err)
	}
	b.conn = conn
	return conn, nil
}

// property is a unit property as StartTransientUnit takes it.
type property struct {
	Name  string
	Value godbus.Variant
}

type deviceAllow struct{ Path, Access string }

type deviceNumber struct {
	Path   string
	Number uint64
}

// scopeProperties are what a machine's scope gets beside what machined sets.
func scopeProperties(r spawn.Registration) ([]property, error) {
	props := []property{
		{"DevicePolicy", godbus.MakeVariant("closed")},
	}
	allow := []deviceAllow{{"/dev/net/tun", "rwm"}, {"char-pts", "rw"}}
	if _, err := os.Stat("/dev/fuse"); err == nil {
		allow = append(allow, deviceAllow{"/dev/fuse", "rwm"})
	}
	for _, path := range r.Devices {
		allow = append(allow, deviceAllow{path, "rw"})
	}
	props = append(props, property{"DeviceAllow", godbus.MakeVariant(allow)})
	if r.KillSignal != 0 {
		props = append(props,
			property{"KillSignal", godbus.MakeVariant(int32(r.KillSignal))},
			property{"KillMode", godbus.MakeVariant("mixed")})
	}
	if r.Slice != "" {
		props = append(props, property{"Slice", godbus.MakeVariant(r.Slice)})
	}
	for _, assignment := range r.Properties {
		p, err := unitProperty(assignment)
		if err != nil {
			return nil, err
		}
		props = append(props, p)
	}
	return props, nil
}

func (b *bus) call(ctx context.Context, method string, args ...any) error {
	conn, err := b.connect(ctx)
	if err != nil {
		return err
	}
	return plain(conn.Object(machine1.BusName, machine1.ManagerPath).CallWithContext(ctx, machine1.ManagerInterface+"."+method, 0, args...).Err)
}

// plain drops the error's name where there is a text for people.
func plain(err error) error {
	var e godbus.Error
	if errors.As(err, &e) && len(e.Body) > 0 {
		if text, ok := e.Body[0].(string); ok && text != "" {
			return errors.New(text)
		}
	}
	return err
}

func netifs(r spawn.Registration) []int32 {
	if r.NetIf == 0 {
		return []int32{}
	}
	return []int32{int32(r.NetIf)}
}

func (b *bus) Create(ctx context.Context, r spawn.Registration) error {
	props, err := scopeProperties(r)
	if err != nil {
		return err
	}
	conn, err := b.connect(ctx)
	if err != nil {
		return err
	}
	if _, err := os.Stat(systemdRun); err == nil {
		props = append(props, b.controller()...)
		props = append(props, coredumps(ctx, conn, r)...)
	}
	return b.call(ctx, "CreateMachineWithNetwork", r.Name, r.ID[:], serviceName, "container", uint32(r.Leader), r.Root, netifs(r), props)
}

func (b *bus) Register(ctx context.Context, r spawn.Registration) error {
	return b.call(ctx, "RegisterMachineWithNetwork", r.Name, r.ID[:], serviceName, "container", uint32(r.Leader), r.Root, netifs(r))
}

func (b *bus) Unregister(ctx context.Context, name string) error {
	conn, err := b.connect(ctx)
	if err != nil {
		return err
	}
	err = conn.Object(machine1.BusName, machine1.ManagerPath).CallWithContext(ctx, machine1.ManagerInterface+".UnregisterMachine", 0, name).Err
	var e godbus.Error
	if errors.As(err, &e) && e.Name == machine1.ErrorNoSuchMachine {
		return nil
	}
	return plain(err)
}

const (
	systemdName = "org.freedesktop.systemd1"
	systemdPath = godbus.ObjectPath("/org/freedesktop/systemd1")
	managerName = systemdName + ".Manager"
	// systemdRun is there when PID 1 is systemd (sd_booted(3)).
	systemdRun = "/run/systemd/system"
)

// coredumpReceive is the first version of systemd that can hand core dumps of a
// unit's processes to the systemd inside (systemd.resource-control(5)).
const coredumpReceive = 255

// coredumps lets an init inside have the core dumps of its processes.
func coredumps(ctx context.Context, conn *godbus.Conn, r spawn.Registration) []property {
	if !r.Boot {
		return nil
	}
	var v godbus.Variant
	err := conn.Object(systemdName, systemdPath).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, managerName, "Version").Store(&v)
	text, _ := v.Value().(string)
	var version int
	if _, scanErr := fmt.Sscanf(strings.TrimPrefix(text, "v"), "%d", &version); err != nil || scanErr != nil || version < coredumpReceive {
		return nil
	}
	return []property{{"CoredumpReceive", godbus.MakeVariant(true)}}
}

// watch has PID 1 tell of jobs and units, once: a machine that reboots gets a new
// scope by the same connection.
func (b *bus) watch(ctx context.Context, conn *godbus.Conn) error {
	if b.watching == conn {
		return nil
	}
	for _, member := range []string{"JobRemoved", "UnitRemoved"} {
		if err := conn.AddMatchSignalContext(ctx, godbus.WithMatchInterface(managerName), godbus.WithMatchMember(member)); err != nil {
			return err
		}
	}
	if err := conn.Object(systemdName, systemdPath).CallWithContext(ctx, managerName+".Subscribe", 0).Err; err != nil {
		return err
	}
	b.watching = conn
	return nil
}

// Scope makes a scope at PID 1, where that is systemd.
func (b *bus) Scope(ctx context.Context, r spawn.Registration) (bool, error) {
	if _, err := os.Stat(systemdRun); err != nil {
		return false, nil
	}
	extra, err := scopeProperties(r)
	if err != nil {
		return false, err
	}
	conn, err := b.connect(ctx)
	if err != nil {
		return false, err
	}
	signals := make(chan *godbus.Signal, 64)
	conn.Signal(signals)
	defer conn.RemoveSignal(signals)
	if err := b.watch(ctx, conn); err != nil {
		return false, plain(err)
	}
	props := append([]property{
		{"Description", godbus.MakeVariant("Container " + r.Name)},
		{"PIDs", godbus.MakeVariant([]uint32{uint32(r.Leader)})},
		{"Slice", godbus.MakeVariant("machine.slice")},
		{"Delegate", godbus.MakeVariant(true)},
		{"CollectMode", godbus.MakeVariant("inactive-or-failed")},
		// Should the first process be gone by now, PID 1 sees the scope empty from its
		// start, which is no event: it looks again when who refers to it goes away.
		{"AddRef", godbus.MakeVariant(true)},
	}, append(append(extra, b.controller()...), coredumps(ctx, conn, r)...)...)
	manager := conn.Object(systemdName, systemdPath)
	if b.scoped == conn { // the machine reboots, and the scope of the last run has to go
		_ = manager.CallWithContext(ctx, managerName+".UnrefUnit", 0, scopeName(r.Name)).Err
	}
	b.scoped = conn
	var job godbus.ObjectPath
	start := func() error {
		return manager.CallWithContext(ctx, managerName+".StartTransientUnit", 0, scopeName(r.Name), "fail", props, []struct {
			Name  string
			Props []property
		}{}).Store(&job)
	}
	err = start()
	var e godbus.Error
	if errors.As(err, &e) && e.Name == systemdName+".UnitExists" && unitEnds(ctx, signals, scopeName(r.Name)) {
		err = start() // the last run's scope has gone meanwhile
	}
	if err != nil {
		return false, plain(err)
	}
	for {
		select {
		case s := <-signals:
			if s == nil {
				return false, errors.New("connection to the bus is gone")
			}
			if s.Name != managerName+".JobRemoved" || len(s.Body) < 4 || s.Body[1] != job {
				continue
			}
			if result, _ := s.Body[3].(string); result != "done" {
				return false, fmt.Errorf("job for %s ended with %q", scopeName(r.Name), result)
			}
			return true, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// endPatience is how long the scope of a run that is over may take to go away.
const endPatience = 2 * time.Second

// unitEnds waits until PID 1 has forgotten a unit.
func unitEnds(ctx context.Context, signals <-chan *godbus.Signal, name string) bool {
	timeout := time.NewTimer(endPatience)
	defer timeout.Stop()
	for {
		select {
		case s := <-signals:
			if s == nil {
				return false
			}
			if s.Name == managerName+".UnitRemoved" && len(s.Body) > 0 && s.Body[0] == name {
				return true
			}
		case <-timeout.C:
			return true // perhaps it was gone before we listened
		case <-ctx.Done():
			return false
		}
	}
}

// scopeName is the unit of a machine (systemd.unit(5), escaping).
func scopeName(machine string) string {
	var b strings.Builder
	for i, c := range []byte(machine) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == ':' || c == '.' && i > 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return "machine-" + b.String() + ".scope"
}
