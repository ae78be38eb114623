package main

import (
	"context"

	"machined/internal/cli"
)

// unitChange is one change to the unit files, as systemd reports it.
type unitChange struct{ Type, File, Source string }

func runEnable(a *app, ctx context.Context, names []string) error {
	return a.enable(ctx, names, true)
}

func runDisable(a *app, ctx context.Context, names []string) error {
	return a.enable(ctx, names, false)
}

func (a *app) enable(ctx context.Context, names []string, on bool) error {
	var units []string
	for _, name := range names {
		unit, err := serviceName(a.opts.runner, name)
		if err != nil {
			return err
		}
		if err := a.checkImage(ctx, name); err != nil {
			return err
		}
		units = append(units, unit)
	}
	changes, err := a.changeUnits(ctx, names, units, on)
	if err != nil {
		return cli.Because("Failed to enable or disable unit", err)
	}
	for _, change := range changes {
		switch change.Type {
		case "symlink":
			a.info("Created symlink '%s' → '%s'.", change.File, change.Source)
		case "unlink":
			a.info("Removed '%s'.", change.File)
		}
	}
	switch {
	case a.opts.now && on:
		return runStart(a, ctx, names)
	case a.opts.now:
		return runPoweroff(a, ctx, names)
	}
	return nil
}

func (a *app) changeUnits(ctx context.Context, names, units []string, on bool) ([]unitChange, error) {
	var changes []unitChange
	if a.opts.runner == "nspawn" {
		err := a.bus.Call(ctx, cli.OwnManager, "EnableMachines", []any{names, on}, &changes)
		if err == nil || !cli.IsUnsupported(err) {
			return changes, err
		}
	}
	var err error
	if on {
		var carries bool
		err = a.bus.Call(ctx, cli.Systemd, "EnableUnitFiles", []any{append(units, "machines.target"), false, false}, &carries, &changes)
	} else {
		err = a.bus.Call(ctx, cli.Systemd, "DisableUnitFiles", []any{units, false}, &changes)
	}
	if err != nil {
		return nil, err
	}
	return changes, a.bus.Call(ctx, cli.Systemd, "Reload", nil)
}
