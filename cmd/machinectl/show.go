package main

import (
	"context"
	"fmt"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus/machine1"
	"machined/internal/cli"
)

// The order in which properties are shown: that of stock's introspection.
var (
	managerOrder = []string{"PoolPath", "PoolUsage", "PoolLimit"}
	machineOrder = []string{
		"Name", "Id", "Timestamp", "TimestampMonotonic", "Service", "Unit", "Subgroup", "Leader", "LeaderPIDFDId",
		"Supervisor", "SupervisorPIDFDId", "Class", "RootDirectory", "NetworkInterfaces", "VSockCID", "SSHAddress",
		"SSHPrivateKeyPath", "State", "UID",
	}
	imageOrder = []string{
		"Name", "Path", "Type", "ReadOnly", "CreationTimestamp", "ModificationTimestamp", "Usage", "Limit",
		"UsageExclusive", "LimitExclusive",
	}
)

func (a *app) shown() cli.Shown {
	return cli.Shown{Names: a.opts.properties, Empty: a.opts.all || a.opts.showEmpty, ValueOnly: a.opts.valueOnly}
}

func (a *app) showObject(ctx context.Context, o cli.Object, order []string) error {
	all, err := a.bus.Properties(ctx, o)
	if err != nil {
		return cli.Because("Could not get properties", err)
	}
	return a.shown().WriteProperties(a.page(), order, all)
}

func runShow(a *app, ctx context.Context, names []string) error {
	if len(names) == 0 {
		return a.showObject(ctx, cli.Manager, managerOrder)
	}
	for i, name := range names {
		object, err := a.machineObject(ctx, name)
		if err != nil {
			return err
		}
		if i > 0 {
			fmt.Fprintln(a.page())
		}
		if err := a.showObject(ctx, object, machineOrder); err != nil {
			return err
		}
	}
	return nil
}

func runShowImage(a *app, ctx context.Context, names []string) error {
	if len(names) == 0 {
		return a.showObject(ctx, cli.Manager, managerOrder)
	}
	for i, name := range names {
		object, err := a.imageObject(ctx, name)
		if err != nil {
			return err
		}
		if i > 0 {
			fmt.Fprintln(a.page())
		}
		if err := a.showObject(ctx, object, imageOrder); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) imageObject(ctx context.Context, name string) (cli.Object, error) {
	var path godbus.ObjectPath
	if err := a.bus.Call(ctx, cli.Manager, "GetImage", []any{name}, &path); err != nil {
		return cli.Object{}, cli.Because("Could not get path to image", err)
	}
	return cli.Object{Service: machine1.BusName, Path: path, Interface: machine1.ImageInterface}, nil
}
