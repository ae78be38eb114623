package server

import (
	"context"
	"path"
	"sync"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/internal/sys"
	"machined/registry"
)

func (s *Server) ownManagerInterface() *dbus.Interface {
	return &dbus.Interface{Name: machine1.OwnManagerInterface, Methods: append([]dbus.Method{
		{Name: "StartMachine", In: args("s name", "a{sv} options"), Out: args("s unit"), Handler: handler(s.startMachine)},
		{Name: "EnableMachines", In: args("as names", "b enabled"), Out: args("a(sss) changes"), Handler: handler(s.enableMachines)},
		{Name: "ExecMachine", In: args("s name", "as command", "a{sv} options", "h stdin", "h stdout", "h stderr"), Out: args("h control"), Handler: s.byName(s.exec)},
		{Name: "ExecMachineTerminal", In: args("s name", "as command", "a{sv} options"), Out: args("h control", "h pty", "s pty_path"), Handler: s.byName(s.execTerminal)},
		{Name: "ListMachinesDetailed", In: args("u max_addresses"), Out: args("a(sssa(iay)a{ss}) machines"), Handler: handler(s.listDetailed)},
	}, s.ownImageMethods()...), Signals: []dbus.Signal{
		{Name: "CreateProgress", Args: args("s name", "s line")},
	}}
}

func (s *Server) ownMachineInterface() *dbus.Interface {
	return &dbus.Interface{Name: machine1.OwnMachineInterface, Methods: []dbus.Method{
		{Name: "Exec", In: args("as command", "a{sv} options", "h stdin", "h stdout", "h stderr"), Out: args("h control"), Handler: onObject(s.exec)},
		{Name: "ExecTerminal", In: args("as command", "a{sv} options"), Out: args("h control", "h pty", "s pty_path"), Handler: onObject(s.execTerminal)},
		{Name: "Unbind", In: args("s destination"), Handler: onObject(s.unbind)},
		{Name: "ListBinds", Out: args("a(ssb) binds"), Handler: onObject(s.listBinds)},
		{Name: "GetLog", In: args("u lines"), Out: args("as log"), Handler: onObject(s.getLog)},
	}, Signals: []dbus.Signal{
		{Name: "CopyProgress", Args: args("s source", "s destination", "t bytes", "t total_bytes")},
	}}
}

func (s *Server) startMachine(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	name := c.String(0)
	options, _ := c.Args[1].(map[string]godbus.Variant)
	req := registry.StartRequest{Image: name}
	for key, value := range options {
		if key != "Properties" || value.Signature().String() != "a(sv)" {
			return nil, invalid("Unknown option '%.64s' of type '%s'", key, value.Signature())
		}
		var err error
		if req.Properties, err = scopeProperties(value.Value()); err != nil {
			return nil, err
		}
	}
	if s.images != nil {
		if err := s.imageExists(ctx, name); err != nil {
			return nil, err
		}
	}
	if err := s.authorize(ctx, c, actionManage, details{"machine", name, "verb", "start"}); err != nil {
		return nil, err
	}
	// The start goes on when the caller leaves: the unit's job does too.
	if err := s.reg.Start(context.WithoutCancel(ctx), req); err != nil {
		return nil, err
	}
	return []any{registry.StartUnit(name)}, nil
}

// maxEnable bounds one EnableMachines, which asks for each name.
const maxEnable = 256

func (s *Server) enableMachines(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	names, _ := c.Args[0].([]string)
	on := c.Bool(1)
	verb := "disable"
	if on {
		verb = "enable"
	}
	if len(names) == 0 || len(names) > maxEnable {
		return nil, invalid("EnableMachines takes 1 to %d names, not %d", maxEnable, len(names))
	}
	for _, name := range names {
		if on && s.images != nil {
			if err := s.imageExists(ctx, name); err != nil {
				return nil, err
			}
		}
		if err := s.authorize(ctx, c, actionManage, details{"machine", name, "verb", verb}); err != nil {
			return nil, err
		}
	}
	changes, err := s.reg.Enable(context.WithoutCancel(ctx), names, on)
	if err != nil {
		return nil, err
	}
	out := make([]machine1.UnitChange, len(changes))
	for i, change := range changes {
		out[i] = machine1.UnitChange{Type: change.Type, File: change.File, Source: change.Source}
	}
	return []any{out}, nil
}

const (
	// detailTimeout bounds what is gathered of one machine for a list.
	detailTimeout = 2 * time.Second
	// detailWorkers is how many machines are looked at at once for one list.
	detailWorkers = 32
)

func (s *Server) listDetailed(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
	limit := int(min(c.Uint32(0), maxAddresses))
	if _, err := c.Credentials(ctx); err != nil {
		return nil, err
	}
	list := s.reg.List()
	out := make([]machine1.DetailedMachine, len(list))
	var wg sync.WaitGroup
	slots := make(chan struct{}, detailWorkers)
	for i := range list {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, detailTimeout)
			defer cancel()
			out[i] = s.detail(ctx, c, &list[i], limit)
		})
	}
	wg.Wait()
	return []any{out}, nil
}

// detail gathers a row. What can't be had stays empty: a list shows "-" there.
func (s *Server) detail(ctx context.Context, c *dbus.Call, m *registry.Machine, limit int) machine1.DetailedMachine {
	row := machine1.DetailedMachine{Name: m.Name, Class: string(m.Class), Service: m.Service, Addresses: []machine1.Address{}, OSRelease: map[string]string{}}
	if limit > 0 {
		if found, err := s.machineAddresses(m); err == nil {
			row.Addresses = found[:min(limit, len(found))]
		}
	}
	// Nobody is asked to authenticate for a list.
	d := details{"machine", m.Name, "verb", "get_os_release"}
	if s.authorizeAs(ctx, c, actionInspect, d, false, nil) == nil {
		if fields, err := s.machineOSRelease(ctx, m); err == nil {
			for _, f := range fields {
				row.OSRelease[f.Key] = f.Value
			}
		}
	}
	return row
}

func (s *Server) unbind(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
	if m.Class != registry.ClassContainer {
		return nil, notSupported("Bind mounting is only supported on container machines.")
	}
	destination := c.String(0)
	if err := checkPath("Destination", destination); err != nil {
		return nil, err
	}
	destination = path.Clean(destination)
	d := details{"machine", m.Name, "verb", "unbind", "dest", destination}
	if err := s.authorize(ctx, c, actionManage, d); err != nil {
		return nil, err
	}
	return nil, s.withLeader(&m, func(p *sys.Process) error { return s.binds.Unmount(ctx, m.Name, p, destination) })
}

func (s *Server) listBinds(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
	out := []machine1.LiveBind{}
	if m.Class != registry.ClassContainer {
		return []any{out}, nil
	}
	if err := s.authorize(ctx, c, actionInspect, details{"machine", m.Name, "verb", "list_binds"}); err != nil {
		return nil, err
	}
	err := s.withLeader(&m, func(p *sys.Process) error {
		list, err := s.binds.List(m.Name, p)
		for _, b := range list {
			out = append(out, machine1.LiveBind{Source: b.Source, Destination: b.Destination, ReadOnly: b.ReadOnly})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return []any{out}, nil
}
