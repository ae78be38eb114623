package main

import (
	"context"
	"errors"
	"os"

	godbus "github.com/godbus/dbus/v5"

	"machined/spawn"
)

// execCommand is one element of ExecStop=, a(sasb).
type execCommand struct {
	Path          string
	Argv          []string
	IgnoreFailure bool
}

// AfterEnd implements spawn.Registrar by a service without processes: it is bound to
// the unit, and stopping it runs the program. So no process has to wait for the end.
func (b *bus) AfterEnd(ctx context.Context, a spawn.AfterEnd) error {
	if _, err := os.Stat(systemdRun); err != nil {
		return errors.New("there is no service manager")
	}
	conn, err := b.connect(ctx)
	if err != nil {
		return err
	}
	props := []property{
		{"Description", godbus.MakeVariant(a.Description)},
		{"Type", godbus.MakeVariant("oneshot")},
		{"RemainAfterExit", godbus.MakeVariant(true)},
		{"BindsTo", godbus.MakeVariant([]string{a.Of})},
		{"CollectMode", godbus.MakeVariant("inactive-or-failed")},
		{"ExecStop", godbus.MakeVariant([]execCommand{{a.Program, a.Args, true}})},
	}
	manager := conn.Object(systemdName, systemdPath)
	// A unit that has ended meanwhile must not be started again for our sake: what we
	// are bound to counts as soon as we are active.
	return plain(manager.CallWithContext(ctx, managerName+".StartTransientUnit", 0, a.Unit, "ignore-dependencies", props, []struct {
		Name  string
		Props []property
	}{}).Err)
}

// Forget implements spawn.Registrar. Nobody waits for the end of the unit.
func (b *bus) Forget(unit string) {
	if conn, err := b.connect(context.Background()); err == nil {
		conn.Object(systemdName, systemdPath).Go(managerName+".StopUnit", godbus.FlagNoReplyExpected, nil, unit, "replace")
	}
}
