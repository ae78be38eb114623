package main

import (
	"context"

	"golang.org/x/sys/unix"

	"machined/internal/cli"
)

// sigPoweroff is SIGRTMIN+4: power off, to an init of systemd's kind (systemd(1)).
const sigPoweroff = 38

func (a *app) kill(ctx context.Context, names []string, whom string, signal int32) error {
	for _, name := range names {
		if err := a.bus.Call(ctx, cli.Manager, "KillMachine", []any{name, whom, signal}); err != nil {
			return cli.Because("Could not kill machine", err)
		}
	}
	return nil
}

func runKill(a *app, ctx context.Context, names []string) error {
	whom := a.opts.killWhom
	if whom == "" {
		whom = "all"
	}
	return a.kill(ctx, names, whom, a.opts.signal)
}

func runPoweroff(a *app, ctx context.Context, names []string) error {
	return a.shutDown(ctx, names, "PowerOff", "Could not power off machine", sigPoweroff)
}

// runReboot sends SIGINT: reboot, to an init of systemd's kind.
func runReboot(a *app, ctx context.Context, names []string) error {
	return a.shutDown(ctx, names, "Reboot", "Could not reboot machine", int32(unix.SIGINT))
}

// shutDown goes through the runner of a machine that has one which takes
// orders, and through a signal to its init otherwise.
func (a *app) shutDown(ctx context.Context, names []string, method, failed string, signal int32) error {
	for _, name := range names {
		done, err := a.instruct(ctx, name, method, failed)
		if !done {
			err = a.kill(ctx, []string{name}, "leader", signal)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func runTerminate(a *app, ctx context.Context, names []string) error {
	for _, name := range names {
		if done, err := a.instruct(ctx, name, "Terminate", "Could not terminate machine"); done {
			if err != nil {
				return err
			}
			continue
		}
		if err := a.bus.Call(ctx, cli.Manager, "TerminateMachine", []any{name}); err != nil {
			return cli.Because("Could not terminate machine", err)
		}
	}
	return nil
}
