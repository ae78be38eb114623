package main

import (
	"context"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus/machine1"
	"machined/internal/cli"
)

func runClone(a *app, ctx context.Context, args []string) error {
	if !a.opts.keepIdentity || a.opts.overlay {
		options := map[string]godbus.Variant{
			"NewIdentity": godbus.MakeVariant(!a.opts.keepIdentity), "ReadOnly": godbus.MakeVariant(a.opts.readOnly),
			"Overlay": godbus.MakeVariant(a.opts.overlay),
		}
		err := a.bus.CallSlow(ctx, cli.OwnManager, "CloneImage", []any{args[0], args[1], options})
		if err == nil {
			return nil
		}
		if !machine1.IsUnknownMethod(err) {
			return cli.Because("Could not clone image", err)
		}
	}
	if err := a.bus.CallSlow(ctx, cli.Manager, "CloneImage", []any{args[0], args[1], a.opts.readOnly}); err != nil {
		return cli.Because("Could not clone image", err)
	}
	return nil
}

func runRename(a *app, ctx context.Context, args []string) error {
	if err := a.bus.Call(ctx, cli.Manager, "RenameImage", []any{args[0], args[1]}); err != nil {
		return cli.Because("Could not rename image", err)
	}
	return nil
}

func runRemove(a *app, ctx context.Context, names []string) error {
	for _, name := range names {
		if err := a.bus.CallSlow(ctx, cli.Manager, "RemoveImage", []any{name}); err != nil {
			return cli.Because("Could not remove image", err)
		}
	}
	return nil
}

func runReadOnly(a *app, ctx context.Context, args []string) error {
	on := true
	if len(args) > 1 {
		var err error
		if on, err = cli.ParseBool(args[1]); err != nil {
			return cli.Failf("Failed to parse boolean argument: %s", args[1])
		}
	}
	if err := a.bus.Call(ctx, cli.Manager, "MarkImageReadOnly", []any{args[0], on}); err != nil {
		return cli.Because("Could not mark image read-only", err)
	}
	return nil
}

func runSetLimit(a *app, ctx context.Context, args []string) error {
	text := args[len(args)-1]
	limit := uint64(cli.Unknown)
	switch text {
	case "-", "none", "infinity":
	default:
		var err error
		if limit, err = cli.ParseSize(text); err != nil {
			return cli.Failf("Failed to parse size: %s", text)
		}
	}
	var err error
	if len(args) > 1 {
		err = a.bus.Call(ctx, cli.Manager, "SetImageLimit", []any{args[0], limit})
	} else {
		err = a.bus.Call(ctx, cli.Manager, "SetPoolLimit", []any{limit})
	}
	if err != nil {
		return cli.Because("Could not set limit", err)
	}
	return nil
}

func runClean(a *app, ctx context.Context, _ []string) error {
	mode := "hidden"
	if a.opts.all {
		mode = "all"
	}
	var removed []struct {
		Name  string
		Freed uint64
	}
	if err := a.bus.CallSlow(ctx, cli.Manager, "CleanPool", []any{mode}, &removed); err != nil {
		return cli.Because("Could not clean pool", err)
	}
	var total uint64
	known := true
	for _, image := range removed {
		if image.Freed == cli.Unknown {
			known = false
			a.term.Info("Removed image '%s'", cli.Printable(image.Name, false))
			continue
		}
		total += image.Freed
		a.term.Info("Removed image '%s'. Freed exclusive disk space: %s", cli.Printable(image.Name, false), cli.FormatBytes(image.Freed))
	}
	if known {
		a.term.Info("Removed %d images in total. Total freed exclusive disk space: %s.", len(removed), cli.FormatBytes(total))
	} else {
		a.term.Info("Removed %d images in total.", len(removed))
	}
	return nil
}
