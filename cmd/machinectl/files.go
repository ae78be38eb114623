package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus/machine1"
	"machined/internal/cli"
)

const copyReplace uint64 = 1 // MACHINE_COPY_REPLACE of org.freedesktop.machine1(5)

func runCopyTo(a *app, ctx context.Context, args []string) error {
	return a.copyFiles(ctx, "CopyToMachine", args, 1)
}

func runCopyFrom(a *app, ctx context.Context, args []string) error {
	return a.copyFiles(ctx, "CopyFromMachine", args, 2)
}

// copyFiles copies; the argument at position host is a path on this side and
// may be relative.
func (a *app) copyFiles(ctx context.Context, method string, args []string, host int) error {
	source, destination := args[1], args[1]
	if len(args) > 2 {
		destination = args[2]
	}
	local := &source
	if host == 2 {
		local = &destination
	}
	absolute, err := filepath.Abs(*local)
	if err != nil {
		return cli.Because("Failed to make path absolute", err)
	}
	// A destination that was left out is the source as it was typed.
	*local = absolute
	call := []any{args[0], source, destination}
	if a.opts.force {
		method += "WithFlags"
		call = append(call, copyReplace)
	}
	stop := a.showCopy(filepath.Base(source))
	err = a.bus.CallSlow(ctx, cli.Manager, method, call)
	stop()
	if err != nil {
		return cli.Because("Failed to copy", err)
	}
	return nil
}

// showCopy draws a bar on a terminal as the daemon tells how far a copy is,
// which it does once the copy has taken a while. Stock's daemon tells nothing.
func (a *app) showCopy(name string) (stop func()) {
	if !a.term.ErrTTY || a.opts.quiet {
		return func() {}
	}
	// A signal that does not fit is dropped: the next one tells more.
	signals := make(chan *godbus.Signal, 64)
	a.bus.Conn.Signal(signals)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		view := copyView{name: cli.Printable(name, false)}
		defer view.close()
		for {
			select {
			case <-done:
				return
			case signal, ok := <-signals:
				if !ok {
					signals = nil
					continue
				}
				var source, destination string
				var copied, total uint64
				if signal.Name == machine1.OwnMachineInterface+".CopyProgress" &&
					godbus.Store(signal.Body, &source, &destination, &copied, &total) == nil {
					view.update(copied, total)
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

// copyView is how far a copy is: a bar, or what was copied so far as long as
// nobody knows how much there is.
type copyView struct {
	name    string
	bar     *cli.Bar
	counted bool
}

func (v *copyView) update(copied, total uint64) {
	if total == 0 {
		v.counted = true
		fmt.Fprintf(os.Stderr, "\r\x1b[K%s: %s copied", v.name, cli.FormatBytes(copied))
		return
	}
	if v.bar == nil {
		of := " of " + cli.FormatBytes(total)
		v.bar = cli.NewBar(v.name+": ", func(fraction float64) string {
			return " " + cli.FormatBytes(uint64(fraction*float64(total))) + of
		})
	}
	v.bar.Set(float64(copied) / float64(total))
}

func (v *copyView) close() {
	if v.bar != nil {
		v.bar.Close()
	}
	if v.counted {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}

func runBind(a *app, ctx context.Context, args []string) error {
	destination := ""
	if len(args) > 2 {
		destination = args[2]
	}
	err := a.bus.Call(ctx, cli.Manager, "BindMountMachine", []any{args[0], args[1], destination, a.opts.readOnly, a.opts.mkdir})
	if err != nil {
		return cli.Because("Failed to bind mount", err)
	}
	return nil
}

// ownMachine is the interface of our own of a machine.
func ownMachine(name string) cli.Object {
	return cli.Object{Service: machine1.BusName, Path: machine1.MachinePath(name), Interface: machine1.OwnMachineInterface}
}

func runUnbind(a *app, ctx context.Context, args []string) error {
	if _, err := a.machineObject(ctx, args[0]); err != nil {
		return err
	}
	for _, path := range args[1:] {
		if err := a.bus.Call(ctx, ownMachine(args[0]), "Unbind", []any{path}); err != nil {
			return needsOurs("Failed to unbind", err)
		}
	}
	return nil
}

func runListBinds(a *app, ctx context.Context, args []string) error {
	if _, err := a.machineObject(ctx, args[0]); err != nil {
		return err
	}
	var binds []struct {
		Source, Destination string
		ReadOnly            bool
	}
	if err := a.bus.Call(ctx, ownMachine(args[0]), "ListBinds", nil, &binds); err != nil {
		return needsOurs("Could not list binds", err)
	}
	table := &cli.Table{Noun: "binds", Columns: []cli.Column{{Head: "DESTINATION"}, {Head: "SOURCE"}, {Head: "RO"}}}
	for _, bind := range binds {
		table.Rows = append(table.Rows, []cli.Cell{cli.Text(bind.Destination), cli.Text(bind.Source),
			{Text: cli.FormatBool(bind.ReadOnly), Value: bind.ReadOnly}})
	}
	table.SortBy(0)
	if mode := a.opts.jsonMode(); mode != cli.JSONOff {
		return table.WriteJSON(a.page(), mode, a.term)
	}
	return table.Write(a.page(), a.layout())
}

// needsOurs explains that a verb is not in stock's daemon.
func needsOurs(what string, err error) error {
	if cli.IsUnsupported(err) {
		return cli.Failf("%s: the running systemd-machined does not know this operation.", what)
	}
	return cli.Because(what, err)
}
