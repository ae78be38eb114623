package main

import (
	"context"
	"fmt"
	"os"
	"sync"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus/machine1"
	"machined/internal/cli"
)

func runCreate(a *app, ctx context.Context, args []string) error {
	if a.opts.from == "" {
		return cli.Failf("What is image %s to be made of? Use --from=DISTRIBUTION:RELEASE, such as --from=debian:trixie.", args[0])
	}
	options := map[string]godbus.Variant{}
	if a.opts.mirror != "" {
		options["Mirror"] = godbus.MakeVariant(a.opts.mirror)
	}
	done := a.showLines(args[0])
	err := a.bus.CallSlow(ctx, cli.OwnManager, "CreateImage", []any{args[0], a.opts.from, options})
	done()
	if err != nil {
		return cli.Because("Could not create image", err)
	}
	a.info("Created image '%s' from %s.", cli.Printable(args[0], false), a.opts.from)
	return nil
}

// showLines prints what the program that makes an image says, until the returned
// function is called.
func (a *app) showLines(name string) func() {
	if a.opts.quiet {
		return func() {}
	}
	signals := make(chan *godbus.Signal, 256)
	a.bus.Conn.Signal(signals)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case signal := <-signals:
				var of, line string
				if signal != nil && signal.Name == machine1.OwnManagerInterface+".CreateProgress" &&
					godbus.Store(signal.Body, &of, &line) == nil && of == name {
					fmt.Fprintln(os.Stderr, cli.Printable(line, false))
				}
			}
		}
	})
	return func() {
		a.bus.Conn.RemoveSignal(signals)
		close(done)
		wg.Wait()
	}
}
