package machine

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"machined/internal/netaddr"
	"machined/internal/nsexec"
	"machined/registry"
	"machined/varlink"
)

type timestamp struct {
	Realtime  int64 `json:"realtime"`  // µs
	Monotonic int64 `json:"monotonic"` // µs
}

type address struct {
	IfIndex int   `json:"ifindex,omitempty"`
	Family  int   `json:"family"`
	Address []int `json:"address"`
}

type description struct {
	Name           string     `json:"name"`
	ID             string     `json:"id,omitempty"`
	Class          string     `json:"class"`
	Service        string     `json:"service,omitempty"`
	RootDirectory  string     `json:"rootDirectory,omitempty"`
	Unit           string     `json:"unit,omitempty"`
	Subgroup       string     `json:"subgroup,omitempty"`
	Leader         *processID `json:"leader,omitempty"`
	Supervisor     *processID `json:"supervisor,omitempty"`
	Timestamp      *timestamp `json:"timestamp,omitempty"`
	VSockCID       *uint32    `json:"vSockCid,omitempty"`
	SSHAddress     string     `json:"sshAddress,omitempty"`
	SSHPrivateKey  string     `json:"sshPrivateKeyPath,omitempty"`
	ControlAddress string     `json:"controlAddress,omitempty"`
	Addresses      []address  `json:"addresses,omitempty"`
	OSRelease      []string   `json:"OSRelease,omitempty"`
	UIDShift       *uint32    `json:"UIDShift,omitempty"`
	UID            uint32     `json:"UID"`
}

func describe(m registry.Machine) description {
	d := description{
		Name: m.Name, Class: string(m.Class), Service: m.Service, RootDirectory: m.RootDirectory,
		Unit: m.Unit, Subgroup: m.Subgroup, Leader: newProcessID(m.Leader), Supervisor: newProcessID(m.Supervisor),
		SSHAddress: m.SSHAddress, SSHPrivateKey: m.SSHPrivateKey, ControlAddress: m.ControlAddress, UID: m.UID,
	}
	if m.ID != ([16]byte{}) {
		d.ID = hex.EncodeToString(m.ID[:])
	}
	if !m.Realtime.IsZero() {
		d.Timestamp = &timestamp{m.Realtime.UnixMicro(), m.Monotonic.Microseconds()}
	}
	if m.VSockCID != registry.VSockCIDAny && m.VSockCID != 0 {
		d.VSockCID = &m.VSockCID
	}
	return d
}

// metadata is how much List looks inside the machines.
type metadata string

const (
	metadataNo       metadata = "no"
	metadataYes      metadata = "yes"
	metadataGraceful metadata = "graceful" // leave out what can't be had
)

func readMetadata(p *varlink.Params) metadata {
	v := p.String("acquireMetadata")
	if v == nil {
		return metadataNo
	}
	switch m := metadata(*v); m {
	case metadataNo, metadataYes, metadataGraceful:
		return m
	}
	p.Invalid("acquireMetadata")
	return metadataNo
}

func (s *Services) list(ctx context.Context, call *varlink.Call) (any, error) {
	t := readTarget(call.Params)
	how := readMetadata(call.Params)
	_ = interactive(call)
	if err := call.Params.Done(); err != nil {
		return nil, err
	}
	if !t.empty() {
		m, err := s.find(call, t)
		if err != nil {
			return nil, err
		}
		return s.listOne(ctx, call, m, how)
	}
	if !call.More {
		return nil, varlink.NewError(varlink.ErrorExpectedMore)
	}
	stream := call.Stream()
	for _, m := range s.cfg.Registry.List() {
		d, err := s.listOne(ctx, call, m, how)
		if err != nil {
			return nil, err
		}
		if err := stream.Add(d); err != nil {
			return nil, err
		}
	}
	return stream.End(varlink.NewError(errNoSuchMachine))
}

func (s *Services) listOne(ctx context.Context, call *varlink.Call, m registry.Machine, how metadata) (description, error) {
	d := describe(m)
	if how == metadataNo {
		return d, nil
	}
	if err := s.authorize(ctx, call, nil, "inspect-machines", details{"name", m.Name}); err != nil {
		return d, err
	}
	if m.Class == registry.ClassVM {
		if how == metadataYes {
			return d, varlink.NewError(errNotAvailable)
		}
		return d, nil
	}
	for _, get := range []func(context.Context, registry.Machine, *description) error{s.addAddresses, s.addOSRelease, s.addUIDShift} {
		if err := get(ctx, m, &d); err != nil && how == metadataYes {
			return d, err
		}
	}
	return d, nil
}

func (s *Services) addAddresses(_ context.Context, m registry.Machine, d *description) error {
	var list []netaddr.Address
	var err error
	if m.Class == registry.ClassHost {
		list, err = netaddr.Host()
	} else {
		list, err = s.net.Addresses(m.Leader.PID, m.Leader.FDID)
	}
	if errors.Is(err, netaddr.ErrSharedNamespace) {
		return varlink.NewError(errNoPrivateNetworking)
	}
	if err != nil {
		return err
	}
	for _, a := range list {
		// The index means nothing outside the machine, but for the one that
		// leads there.
		out := address{Family: unix.AF_INET6}
		if a.IP.Is4() {
			out.Family = unix.AF_INET
		}
		if m.Class == registry.ClassHost {
			out.IfIndex = a.IfIndex
		} else if len(m.NetIfs) == 1 && a.IP.Is6() && a.IP.IsLinkLocalUnicast() {
			out.IfIndex = m.NetIfs[0]
		}
		for _, b := range a.IP.AsSlice() {
			out.Address = append(out.Address, int(b))
		}
		d.Addresses = append(d.Addresses, out)
	}
	return nil
}

func (s *Services) addOSRelease(ctx context.Context, m registry.Machine, d *description) error {
	leader, err := s.cfg.Registry.Leader(m.Name)
	if err != nil {
		return err
	}
	defer leader.Close()
	fields, err := nsexec.OSRelease(ctx, leader, m.UID)
	if errors.Is(err, fs.ErrNotExist) {
		return varlink.NewError(errNoOSRelease)
	}
	if err != nil {
		return err
	}
	d.OSRelease = fields.Lines()
	return nil
}

func (s *Services) addUIDShift(_ context.Context, m registry.Machine, d *description) error {
	shift := uint32(0)
	if m.Class == registry.ClassContainer {
		leader, err := s.cfg.Registry.Leader(m.Name)
		if err != nil {
			return err
		}
		defer leader.Close()
		shift, err = nsexec.UIDShift(leader)
		if errors.Is(err, unix.ENXIO) {
			return varlink.NewError(errNoUIDShift)
		}
		if err != nil {
			return err
		}
	}
	d.UIDShift = &shift
	return nil
}
