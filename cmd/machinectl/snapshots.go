package main

import (
	"context"

	"machined/internal/cli"
)

func runSnapshot(a *app, ctx context.Context, args []string) error {
	var made string
	if err := a.bus.CallSlow(ctx, cli.OwnManager, "SnapshotImage", []any{args[0], optional(args, 1)}, &made); err != nil {
		return cli.Because("Could not take snapshot", err)
	}
	a.info("Kept image '%s' as snapshot '%s'.", cli.Printable(args[0], false), cli.Printable(made, false))
	return nil
}

// optional is an argument that may be missing.
func optional(args []string, i int) string {
	if i < len(args) {
		return args[i]
	}
	return ""
}

// listedSnapshot is a row of ListSnapshots.
type listedSnapshot struct {
	Image, Name string
	Created     uint64
	Type        string
	Usage       uint64
}

func runSnapshots(a *app, ctx context.Context, args []string) error {
	var list []listedSnapshot
	if err := a.bus.Call(ctx, cli.OwnManager, "ListSnapshots", []any{optional(args, 0)}, &list); err != nil {
		return cli.Because("Could not list snapshots", err)
	}
	table := snapshotTable(list)
	if mode := a.opts.jsonMode(); mode != cli.JSONOff {
		return table.WriteJSON(a.page(), mode, a.term)
	}
	return table.Write(a.page(), a.layout())
}

// snapshotTable has the daemon's order: by image, oldest first.
func snapshotTable(list []listedSnapshot) *cli.Table {
	table := &cli.Table{Noun: "snapshots", Columns: []cli.Column{
		{Head: "IMAGE"}, {Head: "SNAPSHOT"}, {Head: "TYPE"}, {Head: "USAGE", Right: true}, {Head: "CREATED"}}}
	for _, s := range list {
		table.Rows = append(table.Rows, []cli.Cell{cli.Text(s.Image), cli.Text(s.Name), cli.Text(s.Type),
			cli.SizeCell(s.Usage), cli.TimeCell(s.Created)})
	}
	return table
}

func runRollback(a *app, ctx context.Context, args []string) error {
	var used string
	if err := a.bus.CallSlow(ctx, cli.OwnManager, "RollbackImage", []any{args[0], optional(args, 1)}, &used); err != nil {
		return cli.Because("Could not roll back image", err)
	}
	a.info("Image '%s' is as it was in snapshot '%s'.", cli.Printable(args[0], false), cli.Printable(used, false))
	return nil
}

func runPrune(a *app, ctx context.Context, args []string) error {
	var removed []string
	if err := a.bus.CallSlow(ctx, cli.OwnManager, "PruneSnapshots", []any{args[0], args[1:], a.opts.keep}, &removed); err != nil {
		return cli.Because("Could not remove snapshots", err)
	}
	for _, name := range removed {
		a.info("Removed snapshot '%s'.", cli.Printable(name, false))
	}
	a.info("Removed %d snapshots in total.", len(removed))
	return nil
}

func runFlatten(a *app, ctx context.Context, names []string) error {
	for _, name := range names {
		if err := a.bus.CallSlow(ctx, cli.OwnManager, "FlattenImage", []any{name}); err != nil {
			return cli.Because("Could not flatten image", err)
		}
	}
	return nil
}
