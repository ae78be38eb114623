package machine

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"machined/internal/mapped"
	"machined/registry"
	"machined/varlink"
)

func (s *Services) unregister(ctx context.Context, call *varlink.Call) (any, error) {
	m, err := s.managed(ctx, call, "unregister")
	if err != nil {
		return nil, err
	}
	return nil, s.cfg.Registry.Unregister(ctx, m.Name)
}

func (s *Services) terminate(ctx context.Context, call *varlink.Call) (any, error) {
	m, err := s.managed(ctx, call, "terminate")
	if err != nil {
		return nil, err
	}
	return nil, plainErrno(s.cfg.Registry.Terminate(ctx, m.Name))
}

func (s *Services) kill(ctx context.Context, call *varlink.Call) (any, error) {
	p := call.Params
	whom := "all"
	if w := p.String("whom"); w != nil && *w != "" {
		switch *w {
		case "all", "leader", "supervisor":
			whom = *w
		default:
			p.Invalid("whom")
		}
	}
	p.Required("signal")
	signal := p.Int("signal")
	if signal != nil && (*signal <= 0 || *signal > 64) {
		p.Invalid("signal")
	}
	m, err := s.managed(ctx, call, "kill")
	if err != nil {
		return nil, err
	}
	return nil, plainErrno(s.cfg.Registry.Kill(ctx, m.Name, whom, unix.Signal(*signal)))
}

// plainErrno is the error of an act that the machine is not made for, the host for
// one, as stock gives it here: an errno, not the interface's own name for it.
func plainErrno(err error) error {
	if errors.Is(err, registry.ErrNotSupported) {
		return varlink.SystemError(unix.EOPNOTSUPP)
	}
	return err
}

// managed is what methods that their machine's owner may call have in common.
func (s *Services) managed(ctx context.Context, call *varlink.Call, verb string) (registry.Machine, error) {
	t := readTarget(call.Params)
	_ = interactive(call)
	if err := call.Params.Done(); err != nil {
		return registry.Machine{}, err
	}
	m, err := s.find(call, t)
	if err != nil {
		return m, err
	}
	return m, s.authorize(ctx, call, &m, "manage-machines", details{"name", m.Name, "verb", verb})
}

type ids struct {
	UID         *uint32 `json:"uid,omitempty"`
	GID         *uint32 `json:"gid,omitempty"`
	MachineName string  `json:"machineName,omitempty"`
}

func (s *Services) mapFrom(_ context.Context, call *varlink.Call) (any, error) {
	p := call.Params
	t := readTarget(p)
	uid, gid := p.Uint32("uid"), p.Uint32("gid")
	if err := p.Done(); err != nil {
		return nil, err
	}
	if uid == nil && gid == nil {
		return nil, varlink.InvalidParameter("uid")
	}
	m, err := s.find(call, t)
	if err != nil {
		return nil, err
	}
	if m.Class != registry.ClassContainer {
		return nil, varlink.NewError(errNotSupported)
	}
	var out ids
	if out.UID, err = s.outer(m, mapped.User, uid, errNoSuchUser); err != nil {
		return nil, err
	}
	if out.GID, err = s.outer(m, mapped.Group, gid, errNoSuchGroup); err != nil {
		return nil, err
	}
	return out, nil
}

func (s *Services) outer(m registry.Machine, kind mapped.Kind, inner *uint32, missing string) (*uint32, error) {
	if inner == nil {
		return nil, nil
	}
	id, err := s.ids.FromMachine(m, kind, *inner)
	if errors.Is(err, mapped.ErrNotFound) {
		return nil, varlink.NewError(missing)
	}
	return &id, err
}

func (s *Services) mapTo(_ context.Context, call *varlink.Call) (any, error) {
	p := call.Params
	uid, gid := p.Uint32("uid"), p.Uint32("gid")
	if err := p.Done(); err != nil {
		return nil, err
	}
	if uid == nil && gid == nil {
		return nil, varlink.InvalidParameter("uid")
	}
	var out ids
	for _, id := range []struct {
		kind             mapped.Kind
		outer            *uint32
		to               **uint32
		inRange, missing string
	}{
		{mapped.User, uid, &out.UID, errUserInHostRange, errNoSuchUser},
		{mapped.Group, gid, &out.GID, errGroupInHostRange, errNoSuchGroup},
	} {
		if id.outer == nil {
			continue
		}
		if *id.outer < mapped.FirstID {
			return nil, varlink.NewError(id.inRange)
		}
		m, inner, err := s.ids.ToMachine(id.kind, *id.outer)
		if err != nil || out.MachineName != "" && out.MachineName != m.Name {
			return nil, varlink.NewError(id.missing)
		}
		*id.to, out.MachineName = &inner, m.Name
	}
	return out, nil
}
