package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus/machine1"
	"machined/internal/cli"
)

func runCreate(a *app, ctx context.Context, args []string) error {
	if a.opts.from == "" {
		return cli.Failf("What is image %s to be made of? Use --from=DISTRIBUTION:RELEASE, such as --from=debian:trixie.", args[0])
	}
	if verb, source := elsewhere(a.opts.from); verb != "" {
		if a.opts.mirror != "" {
			return cli.Failf("--mirror= is for distributions only, not for --from=%s.", cli.Printable(a.opts.from, false))
		}
		return transferVerb(verb)(a, ctx, []string{source, args[0]})
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

// elsewhere tells a source that is an image already from a distribution: the verb
// that fetches it, and what that wants to know.
func elsewhere(from string) (verb, source string) {
	for _, prefix := range []string{"docker://", "oci:", "oci-archive:", "docker-archive:"} {
		if strings.HasPrefix(from, prefix) {
			return "pull-oci", from
		}
	}
	for _, prefix := range []string{"http://", "https://", "file:///"} {
		if !strings.HasPrefix(from, prefix) {
			continue
		}
		path, _, _ := strings.Cut(from, "?")
		for _, suffix := range []string{".xz", ".gz", ".bz2", ".zst"} {
			path = strings.TrimSuffix(path, suffix)
		}
		for _, suffix := range []string{".raw", ".qcow2", ".img"} {
			if strings.HasSuffix(path, suffix) {
				return "pull-raw", from
			}
		}
		return "pull-tar", from
	}
	return "", ""
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
