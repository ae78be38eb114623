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
	return a.kill(ctx, names, "leader", sigPoweroff)
}

// runReboot sends SIGINT: reboot, to an init of systemd's kind.
func runReboot(a *app, ctx context.Context, names []string) error {
	return a.kill(ctx, names, "leader", int32(unix.SIGINT))
}

func runTerminate(a *app, ctx context.Context, names []string) error {
	for _, name := range names {
		if err := a.bus.Call(ctx, cli.Manager, "TerminateMachine", []any{name}); err != nil {
			return cli.Because("Could not terminate machine", err)
		}
	}
	return nil
}
