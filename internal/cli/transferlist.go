package cli

import (
	"context"
	"fmt"

	godbus "github.com/godbus/dbus/v5"
)

// listedTransfer is a row of ListTransfersEx.
type listedTransfer struct {
	ID                         uint32
	Type, Remote, Local, Class string
	Progress                   float64
	Path                       godbus.ObjectPath
}

func (t *Transfers) list(ctx context.Context) error {
	stop, err := t.connect(ctx)
	if err != nil {
		return err
	}
	defer stop()
	var transfers []listedTransfer
	err = t.bus.Call(ctx, Importd, "ListTransfersEx", []any{t.Class, uint64(0)}, &transfers)
	if IsUnsupported(err) {
		var rows []struct {
			ID                  uint32
			Type, Remote, Local string
			Progress            float64
			Path                godbus.ObjectPath
		}
		err = t.bus.Call(ctx, Importd, "ListTransfers", nil, &rows)
		for _, row := range rows {
			transfers = append(transfers, listedTransfer{row.ID, row.Type, row.Remote, row.Local, "machine", row.Progress, row.Path})
		}
	}
	if err != nil {
		return Because("Could not get transfers", err)
	}
	return t.print(transferTable(transfers, t.Program == "machinectl"))
}

// transferTable lays transfers out as importctl does, or as machinectl did,
// which has no classes.
func transferTable(transfers []listedTransfer, machines bool) *Table {
	table := &Table{Noun: "transfers", Columns: []Column{
		{Head: "ID", Right: true}, {Head: "PROGRESS", Right: true}, {Head: "TYPE"}, {Head: "CLASS"}, {Head: "LOCAL"}, {Head: "REMOTE"}}}
	if machines {
		table.Columns[1].Head, table.Columns[1].JSON = "PERCENT", "progress"
		table.Columns[3].JSONOnly = true
	}
	for _, one := range transfers {
		progress := Cell{}
		if one.Progress >= 0 {
			progress = Cell{Text: fmt.Sprintf("%d%%", int(one.Progress*100)), Value: one.Progress}
		}
		table.Rows = append(table.Rows, []Cell{{Text: fmt.Sprint(one.ID), Value: one.ID}, progress, Text(one.Type),
			Text(one.Class), Text(one.Local), Text(one.Remote)})
	}
	return table
}

func (t *Transfers) print(table *Table) error {
	out := OpenOutput(t.Terminal, t.NoPager)
	var err error
	if t.JSON != JSONOff {
		err = table.WriteJSON(out, t.JSON, t.Terminal)
	} else {
		err = table.Write(out, Layout{Terminal: t.Terminal, Legend: t.Legend, Full: t.Full || out.Paged})
	}
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	return err
}

// installedImage is a row of import1's ListImages.
type installedImage struct {
	Class, Name, Type, Path                      string
	ReadOnly                                     bool
	Created, Modified                            uint64
	Usage, UsageExclusive, Limit, LimitExclusive uint64
}

func (t *Transfers) listImages(ctx context.Context) error {
	stop, err := t.connect(ctx)
	if err != nil {
		return err
	}
	defer stop()
	var images []installedImage
	if err := t.bus.Call(ctx, Importd, "ListImages", []any{t.Class, uint64(0)}, &images); err != nil {
		return Because("Could not get list of images", err)
	}
	table := &Table{Noun: "images", Columns: []Column{{Head: "CLASS"}, {Head: "NAME"}, {Head: "TYPE"}, {Head: "PATH"},
		{Head: "RO"}, {Head: "CRTIME"}, {Head: "MTIME"}, {Head: "USAGE"}, {Head: "LIMIT"}}}
	for _, image := range images {
		ro := Cell{Text: "rw", Style: StyleGreen, Value: false}
		if image.ReadOnly {
			ro = Cell{Text: "ro", Style: StyleRed, Value: true}
		}
		table.Rows = append(table.Rows, []Cell{Text(image.Class), Text(image.Name), Text(image.Type), Text(image.Path), ro,
			TimeCell(image.Created), TimeCell(image.Modified), sizeOrDash(image.Usage), sizeOrDash(image.Limit)})
	}
	table.SortBy(0, 1)
	return t.print(table)
}

// sizeOrDash is a plain dash where a size is not known.
func sizeOrDash(n uint64) Cell {
	cell := SizeCell(n)
	if cell.Text == "" {
		cell.Text = "-"
	}
	return cell
}
