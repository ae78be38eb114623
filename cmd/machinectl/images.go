package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/internal/cli"
)

// listedImage is a row of ListImages.
type listedImage struct {
	Name, Type        string
	ReadOnly          bool
	Created, Modified uint64
	Usage             uint64
	Path              godbus.ObjectPath
}

func (a *app) listImages(ctx context.Context) ([]listedImage, error) {
	var images []listedImage
	err := a.bus.Call(ctx, cli.Manager, "ListImages", nil, &images)
	return images, err
}

func runListImages(a *app, ctx context.Context, _ []string) error {
	images, err := a.listImages(ctx)
	if err != nil {
		return cli.Because("Could not get images", err)
	}
	table := imageTable(images, a.opts.all)
	if mode := a.opts.jsonMode(); mode != cli.JSONOff {
		return table.WriteJSON(a.page(), mode, a.term)
	}
	return table.Write(a.page(), a.layout())
}

func imageTable(images []listedImage, all bool) *cli.Table {
	table := &cli.Table{Noun: "images", Columns: []cli.Column{
		{Head: "NAME"}, {Head: "TYPE"}, {Head: "RO"}, {Head: "USAGE", Right: true}, {Head: "CREATED"}, {Head: "MODIFIED"}}}
	for _, image := range images {
		if strings.HasPrefix(image.Name, ".") && !all {
			continue
		}
		ro := cli.Cell{Text: cli.FormatBool(image.ReadOnly), Value: image.ReadOnly}
		if image.ReadOnly {
			ro.Style = cli.StyleRed
		}
		usage := cli.SizeCell(image.Usage)
		if usage.Text == "" {
			usage.Text = " "
		}
		table.Rows = append(table.Rows, []cli.Cell{cli.Text(image.Name), cli.Text(image.Type), ro, usage,
			cli.TimeCell(image.Created), cli.TimeCell(image.Modified)})
	}
	table.SortBy(0)
	return table
}

// imageStatus is what the status of an image shows.
type imageStatus struct {
	Name, Path, Type, Hostname, OS               string
	MachineID                                    []byte
	Info                                         map[string]string
	ReadOnly                                     bool
	Created, Modified                            uint64
	Usage, Limit, UsageExclusive, LimitExclusive uint64
}

func runImageStatus(a *app, ctx context.Context, names []string) error {
	if len(names) == 0 {
		return a.poolStatus(ctx)
	}
	for i, name := range names {
		object, err := a.imageObject(ctx, name)
		if err != nil {
			return err
		}
		all, err := a.bus.Properties(ctx, object)
		if err != nil {
			return cli.Because("Could not get properties", err)
		}
		s := &imageStatus{
			Name: value[string](all, "Name"), Path: value[string](all, "Path"), Type: value[string](all, "Type"),
			ReadOnly: value[bool](all, "ReadOnly"), Created: value[uint64](all, "CreationTimestamp"),
			Modified: value[uint64](all, "ModificationTimestamp"), Usage: value[uint64](all, "Usage"), Limit: value[uint64](all, "Limit"),
			UsageExclusive: value[uint64](all, "UsageExclusive"), LimitExclusive: value[uint64](all, "LimitExclusive"),
		}
		// An image in use, or without a system in it, has none of these, and what
		// may not be seen is left out.
		quiet := &cli.Bus{Conn: a.bus.Conn}
		_ = quiet.Call(ctx, cli.Manager, "GetImageHostname", []any{name}, &s.Hostname)
		_ = quiet.Call(ctx, cli.Manager, "GetImageMachineID", []any{name}, &s.MachineID)
		_ = quiet.Call(ctx, cli.Manager, "GetImageMachineInfo", []any{name}, &s.Info)
		var release map[string]string
		if quiet.Call(ctx, cli.Manager, "GetImageOSRelease", []any{name}, &release) == nil {
			s.OS = osName(release)
		}
		if i > 0 {
			fmt.Fprintln(a.page())
		}
		s.write(a.page(), a.term, time.Now())
	}
	return nil
}

func (s *imageStatus) write(w io.Writer, t *cli.Terminal, now time.Time) {
	line := func(label, text string) {
		if text != "" {
			fmt.Fprintf(w, "\t%8s: %s\n", label, text)
		}
	}
	fmt.Fprintln(w, cli.Printable(s.Name, false))
	line("Type", s.Type)
	line("Path", cli.Printable(s.Path, false))
	line("Hostname", cli.Printable(s.Hostname, false))
	if len(s.MachineID) > 0 {
		fmt.Fprintf(w, "      Machine ID: %s\n", hex.EncodeToString(s.MachineID))
	}
	if deployment := s.Info["DEPLOYMENT"]; deployment != "" {
		fmt.Fprintf(w, "      Deployment: %s\n", cli.Printable(deployment, false))
	}
	line("OS", s.OS)
	if s.ReadOnly {
		line("RO", t.Paint(cli.StyleRed, "read-only"))
	} else {
		line("RO", "writable")
	}
	for _, stamp := range []struct {
		label string
		usec  uint64
	}{{"Created", s.Created}, {"Modified", s.Modified}} {
		if text := cli.FormatTime(stamp.usec); text != "" {
			line(stamp.label, text+"; "+cli.FormatRelative(stamp.usec, now))
		}
	}
	line("Usage", sizeWithExclusive(s.Usage, s.UsageExclusive))
	line("Limit", sizeWithExclusive(s.Limit, s.LimitExclusive))
}

func sizeWithExclusive(n, exclusive uint64) string {
	if n == cli.Unknown {
		return ""
	}
	if exclusive != n && exclusive != cli.Unknown {
		return cli.FormatBytes(n) + " (exclusive: " + cli.FormatBytes(exclusive) + ")"
	}
	return cli.FormatBytes(n)
}

func (a *app) poolStatus(ctx context.Context) error {
	all, err := a.bus.Properties(ctx, cli.Manager)
	if err != nil {
		return cli.Because("Could not get properties", err)
	}
	out := a.page()
	for _, row := range []struct{ label, text string }{
		{"Path", value[string](all, "PoolPath")},
		{"Usage", sizeWithExclusive(value[uint64](all, "PoolUsage"), cli.Unknown)},
		{"Limit", sizeWithExclusive(value[uint64](all, "PoolLimit"), cli.Unknown)},
	} {
		if row.text != "" {
			fmt.Fprintf(out, "\t%8s: %s\n", row.label, row.text)
		}
	}
	return nil
}
