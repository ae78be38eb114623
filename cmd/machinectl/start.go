package main

import (
	"context"
	"fmt"
	"strings"
	"sync"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus/machine1"
	"machined/internal/cli"
)

// serviceName is the unit that runs an image as a machine.
func serviceName(runner, name string) (string, error) {
	if !validName(name) {
		return "", cli.Failf("Invalid machine name %s. A name has 1 to 64 letters, digits, '-' and '.', and no '-' or '.' at either end.", name)
	}
	return "systemd-" + runner + "@" + name + ".service", nil
}

// validName says whether name can be a machine's name.
func validName(name string) bool {
	if name == "" || len(name) > 64 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range label {
			if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
				return false
			}
		}
	}
	return true
}

func (a *app) checkImage(ctx context.Context, name string) error {
	var path godbus.ObjectPath
	err := a.bus.Call(ctx, cli.Manager, "GetImage", []any{name}, &path)
	switch {
	case err == nil:
		return nil
	case cli.ErrorName(err) == machine1.ErrorNoSuchImage:
		return cli.Failf("Machine image '%s' does not exist.", name)
	}
	return cli.Because(fmt.Sprintf("Failed to check if image %s exists", name), err)
}

func runStart(a *app, ctx context.Context, names []string) error {
	for _, name := range names {
		if _, err := serviceName(a.opts.runner, name); err != nil {
			return err
		}
		if err := a.checkImage(ctx, name); err != nil {
			return err
		}
	}
	if a.opts.runner == "nspawn" {
		if done, err := a.startMachines(ctx, names); done {
			return err
		}
	}
	return a.startUnits(ctx, names)
}

// startMachines has the daemon start the machines, side by side. It reports
// done as false when the daemon does not know how.
func (a *app) startMachines(ctx context.Context, names []string) (done bool, err error) {
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			errs[i] = a.bus.CallSlow(ctx, cli.OwnManager, "StartMachine", []any{name, map[string]godbus.Variant{}})
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err == nil {
			continue
		}
		if cli.IsUnsupported(err) {
			return false, nil
		}
		unit, _ := serviceName("nspawn", names[i])
		text := "Failed to start unit: " + cli.Reason(err)
		if cli.ErrorName(err) == machine1.ErrorJobFailed {
			text = cli.ReasonLines(err)
			if result, unitErr := a.bus.UnitProperty(ctx, unit, "Service", "Result"); unitErr == nil && result != "success" {
				text = a.bus.JobText(ctx, unit, "failed")
			}
		}
		if !a.opts.quiet {
			a.term.Error("%s", text)
		}
		errs[0] = cli.ErrReported
	}
	return true, errs[0]
}

// startUnits starts the machines' units at the service manager, and waits.
func (a *app) startUnits(ctx context.Context, names []string) error {
	watch, err := a.bus.WatchJobs(ctx)
	if err != nil {
		return err
	}
	jobs := map[godbus.ObjectPath]string{}
	for _, name := range names {
		unit, err := serviceName(a.opts.runner, name)
		if err != nil {
			return err
		}
		var job godbus.ObjectPath
		if err := a.bus.Call(ctx, cli.Systemd, "StartUnit", []any{unit, "fail"}, &job); err != nil {
			return cli.Because("Failed to start unit", err)
		}
		jobs[job] = unit
	}
	return watch.Wait(ctx, jobs, func(text string) {
		if !a.opts.quiet {
			a.term.Error("%s", text)
		}
	})
}
