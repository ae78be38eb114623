package machine

import (
	"context"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"machined/internal/nsexec"
	"machined/internal/sys"
	"machined/registry"
	"machined/varlink"
)

// paths reads source and destination; an empty destination is the source.
func paths(p *varlink.Params) (source, destination string) {
	source = p.RequiredString("source")
	destination = source
	if d := p.String("destination"); d != nil && *d != "" {
		destination = *d
	}
	for _, one := range []struct{ name, path string }{{"source", source}, {"destination", destination}} {
		if len(one.path) == 0 || one.path[0] != '/' || path.Clean(one.path) != one.path || len(one.path) >= unix.PathMax {
			p.Invalid(one.name)
		}
	}
	return source, destination
}

// fileTarget finds a machine whose files can be reached, authorises the caller,
// and pins the leader, which the caller of it closes.
func (s *Services) fileTarget(ctx context.Context, call *varlink.Call, t target, d ...string) (registry.Machine, *sys.Process, error) {
	if err := call.Params.Done(); err != nil {
		return registry.Machine{}, nil, err
	}
	m, err := s.find(call, t)
	if err != nil {
		return m, nil, err
	}
	if m.Class != registry.ClassContainer {
		return m, nil, varlink.NewError(errNotSupported)
	}
	if err := s.authorize(ctx, call, nil, "manage-machines", append(details{"name", m.Name}, d...)); err != nil {
		return m, nil, err
	}
	leader, err := s.cfg.Registry.Leader(m.Name)
	return m, leader, err
}

func (s *Services) bindMount(ctx context.Context, call *varlink.Call) (any, error) {
	t := readTarget(call.Params)
	source, destination := paths(call.Params)
	bind := nsexec.Bind{
		Source: source, Destination: destination,
		ReadOnly: call.Params.Flag("readOnly"), Mkdir: call.Params.Flag("mkdir"),
	}
	_ = interactive(call)
	m, leader, err := s.fileTarget(ctx, call, t, "verb", "bind", "src", source, "dest", destination)
	if err != nil {
		return nil, err
	}
	defer leader.Close()
	return nil, s.cfg.Binds.Mount(ctx, m.Name, leader, bind)
}

func (s *Services) copyFrom(ctx context.Context, call *varlink.Call) (any, error) {
	return s.copy(ctx, call, false)
}

func (s *Services) copyTo(ctx context.Context, call *varlink.Call) (any, error) {
	return s.copy(ctx, call, true)
}

func (s *Services) copy(ctx context.Context, call *varlink.Call, toMachine bool) (any, error) {
	t := readTarget(call.Params)
	source, destination := paths(call.Params)
	job := nsexec.Copy{
		Source: source, Destination: destination, ToMachine: toMachine, Replace: call.Params.Flag("replace"),
	}
	_ = interactive(call)
	_, leader, err := s.fileTarget(ctx, call, t, "verb", "copy", "src", source, "dest", destination)
	if err != nil {
		return nil, err
	}
	defer leader.Close()
	done, err := s.operation(errTooManyOperations)
	if err != nil {
		return nil, err
	}
	defer done()
	return nil, job.Run(ctx, leader)
}

// openRootDirectory passes a descriptor of the machine's root directory.
func (s *Services) openRootDirectory(ctx context.Context, call *varlink.Call) (any, error) {
	t := readTarget(call.Params)
	_ = interactive(call)
	if err := call.Params.Done(); err != nil {
		return nil, err
	}
	m, err := s.find(call, t)
	if err != nil {
		return nil, err
	}
	if m.Class == registry.ClassVM {
		return nil, varlink.NewError(errNotSupported)
	}
	if err := s.authorize(ctx, call, nil, "manage-machines", details{"name", m.Name, "verb", "open_root_directory"}); err != nil {
		return nil, err
	}
	root, err := s.openRoot(ctx, m)
	if err != nil {
		return nil, err
	}
	return map[string]int{"fileDescriptor": call.PassFile(root)}, nil
}

func (s *Services) openRoot(ctx context.Context, m registry.Machine) (*os.File, error) {
	if m.Class == registry.ClassHost {
		return os.Open("/")
	}
	leader, err := s.cfg.Registry.Leader(m.Name)
	if err != nil {
		return nil, err
	}
	defer leader.Close()
	return nsexec.OpenRootDirectory(ctx, leader)
}
