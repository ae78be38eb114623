package main

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus/machine1"
	"machined/internal/cli"
)

// listWorkers bounds the parallel questions to a daemon that cannot list at once.
const listWorkers = 16

// address is one address as the bus carries it.
type address struct {
	Family int32
	Bytes  []byte
}

func (a address) String() string {
	ip, ok := netip.AddrFromSlice(a.Bytes)
	if !ok {
		return ""
	}
	return ip.String()
}

// listedMachine is a row of ListMachinesDetailed.
type listedMachine struct {
	Name, Class, Service string
	Addresses            []address
	OSRelease            map[string]string
}

func runList(a *app, ctx context.Context, _ []string) error {
	machines, err := a.listMachines(ctx)
	if err != nil {
		return cli.Because("Could not get machines", err)
	}
	out := a.page()
	table := machineTable(machines, &a.opts)
	if mode := a.opts.jsonMode(); mode != cli.JSONOff {
		return table.WriteJSON(out, mode, a.term)
	}
	return table.Write(out, a.layout())
}

func machineTable(machines []listedMachine, o *options) *cli.Table {
	table := &cli.Table{Noun: "machines", Columns: []cli.Column{
		{Head: "MACHINE"}, {Head: "CLASS"}, {Head: "SERVICE"}, {Head: "OS"}, {Head: "VERSION"}, {Head: "ADDRESSES"}}}
	if o.maxAddresses == 0 {
		table.Columns = table.Columns[:5]
	}
	for _, m := range machines {
		if strings.HasPrefix(m.Name, ".") && !o.all {
			continue
		}
		var all []string
		for _, address := range m.Addresses {
			all = append(all, address.String())
		}
		cell := cli.Text(strings.Join(all, "\n"))
		if limit := int(o.maxAddresses); o.maxAddresses != allAddresses && len(all) > limit && !o.full {
			cell.Text = strings.Join(all[:limit], "\n") + "…"
		}
		table.Rows = append(table.Rows, []cli.Cell{cli.Text(m.Name), cli.Text(m.Class), cli.Text(m.Service),
			cli.Text(m.OSRelease["ID"]), cli.Text(m.OSRelease["VERSION_ID"]), cell})
	}
	table.SortBy(0)
	return table
}

// listMachines asks the daemon for everything at once; a daemon that can't is
// asked about all machines side by side.
func (a *app) listMachines(ctx context.Context) ([]listedMachine, error) {
	var machines []listedMachine
	err := a.bus.Call(ctx, cli.OwnManager, "ListMachinesDetailed", []any{allAddresses}, &machines)
	if err == nil || !cli.IsUnsupported(err) {
		return machines, err
	}
	var rows []struct {
		Name, Class, Service string
		Path                 godbus.ObjectPath
	}
	if err := a.bus.Call(ctx, cli.Manager, "ListMachines", nil, &rows); err != nil {
		return nil, err
	}
	machines = make([]listedMachine, len(rows))
	// The questions must not make the person type a password for each machine.
	quiet := &cli.Bus{Conn: a.bus.Conn}
	var wg sync.WaitGroup
	slots := make(chan struct{}, listWorkers)
	for i, row := range rows {
		m := &machines[i]
		m.Name, m.Class, m.Service = row.Name, row.Class, row.Service
		if strings.HasPrefix(row.Name, ".") && !a.opts.all {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			// A machine may have neither; its cells stay empty.
			_ = quiet.Call(ctx, cli.Manager, "GetMachineOSRelease", []any{m.Name}, &m.OSRelease)
			if m.Class != "host" {
				_ = quiet.Call(ctx, cli.Manager, "GetMachineAddresses", []any{m.Name}, &m.Addresses)
			}
		})
	}
	wg.Wait()
	return machines, nil
}

// complete offers names for the shell's completion.
func (a *app) complete(ctx context.Context, v *verb, args []string, prefix string) []string {
	if v.offline || v.max >= 0 && len(args) >= v.max || a.connect(ctx) != nil {
		return nil
	}
	defer a.close()
	a.bus.Ask = false
	var names []string
	switch {
	case v.group == groupImages || v.name == "start" || v.name == "enable" || v.name == "disable":
		images, err := a.listImages(ctx)
		if err != nil {
			return nil
		}
		for _, image := range images {
			names = append(names, image.Name)
		}
	case v.group == groupMachines:
		var rows []struct {
			Name, Class, Service string
			Path                 godbus.ObjectPath
		}
		if a.bus.Call(ctx, cli.Manager, "ListMachines", nil, &rows) != nil {
			return nil
		}
		for _, row := range rows {
			names = append(names, row.Name)
		}
	}
	var matching []string
	for _, name := range names {
		if strings.HasPrefix(name, prefix) {
			matching = append(matching, name)
		}
	}
	return matching
}

// machineObject is the machine's own object on the bus, found by its name.
func (a *app) machineObject(ctx context.Context, name string) (cli.Object, error) {
	var path godbus.ObjectPath
	if err := a.bus.Call(ctx, cli.Manager, "GetMachine", []any{name}, &path); err != nil {
		return cli.Object{}, cli.Because("Could not get path to machine", err)
	}
	return cli.Object{Service: machine1.BusName, Path: path, Interface: machine1.MachineInterface}, nil
}

func decimal[T ~uint32 | ~int32](n T) string { return strconv.FormatInt(int64(n), 10) }
