package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"machined/internal/cli"
)

// machineSocket is where machined serves io.systemd.Machine, below the runtime
// directory, and instanceInterface what a virtual machine's own control socket
// serves (systemd 261).
const (
	machineSocket     = "systemd/machine/io.systemd.Machine"
	instanceInterface = "io.systemd.MachineInstance."
)

// controlAddress is where the runner of a machine takes orders; "" when it
// does not, as containers don't, or when the daemon is too old to tell.
func (a *app) controlAddress(ctx context.Context, name string) string {
	if !a.opts.target.Local() {
		return ""
	}
	var machine struct {
		ControlAddress string `json:"controlAddress"`
	}
	if cli.CallVarlink(ctx, filepath.Join(a.runtimeDir(), machineSocket), "io.systemd.Machine.List", map[string]string{"name": name}, &machine) != nil {
		return ""
	}
	return machine.ControlAddress
}

// instruct asks the runner of a machine; done is false when the machine has
// none that listens.
func (a *app) instruct(ctx context.Context, name, method, failed string) (done bool, err error) {
	address := a.controlAddress(ctx, name)
	if address == "" {
		return false, nil
	}
	if err := cli.CallVarlink(ctx, address, instanceInterface+method, nil, nil); err != nil {
		return true, instanceError(failed, name, err)
	}
	return true, nil
}

func instanceError(failed, name string, err error) error {
	var answer *cli.VarlinkError
	if errors.As(err, &answer) {
		return cli.Failf("%s '%s': its runner answers %s", failed, name, answer)
	}
	return cli.Because(fmt.Sprintf("%s '%s'", failed, name), err)
}

func runPause(a *app, ctx context.Context, names []string) error {
	return a.instructAll(ctx, names, "Pause", "Could not pause machine")
}

func runResume(a *app, ctx context.Context, names []string) error {
	return a.instructAll(ctx, names, "Resume", "Could not resume machine")
}

func (a *app) instructAll(ctx context.Context, names []string, method, failed string) error {
	if !a.opts.target.Local() {
		return cli.Failf("%s: only machines of this host can be reached.", failed)
	}
	for _, name := range names {
		if _, err := a.machineObject(ctx, name); err != nil {
			return err
		}
		done, err := a.instruct(ctx, name, method, failed)
		if err != nil {
			return err
		}
		if !done {
			return cli.Failf("%s '%s': it has no control address. Only virtual machines registered with one have this operation.", failed, name)
		}
	}
	return nil
}
