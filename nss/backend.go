package nss

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"machined/internal/mapped"
	"machined/internal/netaddr"
	"machined/registry"
)

// Directory is the Backend over the table of running machines.
type Directory struct {
	Machines mapped.Machines
	Net      *netaddr.Cache
	IDs      *mapped.Directory
}

var _ Backend = (*Directory)(nil)

// NewDirectory returns a backend that looks machines up in the registry.
func NewDirectory(machines mapped.Machines, cache *netaddr.Cache) *Directory {
	return &Directory{Machines: machines, Net: cache, IDs: &mapped.Directory{Machines: machines}}
}

// Addresses implements Backend. Machine names compare as host names do, without
// regard to case; the exact name is preferred.
func (d *Directory) Addresses(_ context.Context, caller uint32, name string) (string, []Address, error) {
	m, err := d.Machines.Get(name)
	if err != nil || !hasName(m, caller) {
		ok := false
		for _, other := range d.Machines.List() {
			if strings.EqualFold(other.Name, name) && hasName(other, caller) {
				m, ok = other, true
				break
			}
		}
		if !ok {
			return "", nil, ErrNotFound
		}
	}
	addrs, err := d.Of(m)
	if err != nil {
		return "", nil, err
	}
	return m.Name, addrs, nil
}

// hasName reports whether a machine's name means anything to a caller. A user can
// register a machine under the name of any host, with any address in it: only
// that user shall reach it by that name.
func hasName(m registry.Machine, caller uint32) bool { return m.UID == 0 || m.UID == caller }

// Of returns the ranked addresses of a container with a network of its own;
// ErrNotFound for every other machine.
func (d *Directory) Of(m registry.Machine) ([]Address, error) {
	if m.Class != registry.ClassContainer || m.Leader.PID <= 0 {
		return nil, ErrNotFound
	}
	inside, err := d.Net.Addresses(m.Leader.PID, m.Leader.FDID)
	if err != nil {
		if errors.Is(err, netaddr.ErrSharedNamespace) || errors.Is(err, unix.ESRCH) {
			return nil, ErrNotFound
		}
		return nil, err
	}
	// Which of the host's interfaces leads to it is only known if it has one.
	scope := uint32(0)
	if len(m.NetIfs) == 1 {
		scope = uint32(m.NetIfs[0])
	}
	out := make([]Address, 0, len(inside))
	for _, a := range inside {
		out = append(out, Address{IP: a.IP, Scope: scope})
	}
	return Rank(out), nil
}

// ReverseLookup implements Backend. All machines are looked at in parallel.
func (d *Directory) ReverseLookup(ctx context.Context, caller uint32, ip netip.Addr) (string, error) {
	ip = ip.Unmap()
	if ip.IsLoopback() || ip.IsMulticast() || ip.IsUnspecified() {
		return "", ErrNotFound
	}
	machines := d.Machines.List()
	hits := make([]bool, len(machines))
	var wait sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i, m := range machines {
		if m.Class != registry.ClassContainer || !hasName(m, caller) {
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			wait.Wait()
			return "", ctx.Err()
		}
		wait.Go(func() {
			defer func() { <-slots }()
			addrs, err := d.Of(m)
			if err != nil {
				return
			}
			for _, a := range addrs {
				hits[i] = hits[i] || a.IP == ip
			}
		})
	}
	wait.Wait()
	for i, hit := range hits {
		if hit {
			return machines[i].Name, nil
		}
	}
	return "", ErrNotFound
}

// UserByName implements Backend.
func (d *Directory) UserByName(_ context.Context, name string) (Entry, error) {
	return named(d.IDs.ByName(mapped.User, name))
}

// UserByID implements Backend.
func (d *Directory) UserByID(_ context.Context, uid uint32) (Entry, error) {
	return named(d.IDs.ByID(mapped.User, uid))
}

// GroupByName implements Backend.
func (d *Directory) GroupByName(_ context.Context, name string) (Entry, error) {
	return named(d.IDs.ByName(mapped.Group, name))
}

// GroupByID implements Backend.
func (d *Directory) GroupByID(_ context.Context, gid uint32) (Entry, error) {
	return named(d.IDs.ByID(mapped.Group, gid))
}

func named(e mapped.Entry, err error) (Entry, error) {
	if errors.Is(err, mapped.ErrNotFound) {
		return Entry{}, ErrNotFound
	}
	if err != nil {
		return Entry{}, err
	}
	return Entry{Name: e.Name, Comment: e.Comment, ID: e.ID, GID: mapped.NoGroup}, nil
}
