package server

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/internal/envfile"
	"machined/internal/netaddr"
	"machined/internal/nsexec"
	"machined/internal/sys"
	"machined/registry"
)

func (s *Server) unregister(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
	if err := s.authorizeOwner(ctx, c, &m, actionManage, details{"machine", m.Name, "verb", "unregister"}); err != nil {
		return nil, err
	}
	return nil, s.reg.Unregister(ctx, m.Name)
}

func (s *Server) terminate(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
	if err := s.authorizeOwner(ctx, c, &m, actionManage, details{"machine", m.Name, "verb", "terminate"}); err != nil {
		return nil, err
	}
	return nil, s.reg.Terminate(ctx, m.Name)
}

// maxSignal is the highest signal number (signal(7)).
const maxSignal = 64

func (s *Server) kill(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
	whom := c.String(0)
	signal, _ := c.Args[1].(int32)
	switch whom {
	case "", "all", "leader", "supervisor":
	default:
		return nil, invalid("Invalid kill parameter '%s'", whom)
	}
	if signal < 1 || signal > maxSignal {
		return nil, invalid("Invalid signal %d", signal)
	}
	if err := s.authorizeOwner(ctx, c, &m, actionManage, details{"machine", m.Name, "verb", "kill"}); err != nil {
		return nil, err
	}
	return nil, s.reg.Kill(ctx, m.Name, whom, unix.Signal(signal))
}

// withLeader runs f with the pinned leader of m, which is still the one that m
// was looked up with.
func (s *Server) withLeader(m *registry.Machine, f func(p *sys.Process) error) error {
	p, err := s.reg.Leader(m.Name)
	if err != nil {
		return err
	}
	defer p.Close()
	if p.PID() != m.Leader.PID {
		return fmt.Errorf("leader of machine %q: %w", m.Name, unix.ESRCH)
	}
	return f(p)
}

// maxAddresses bounds one answer; a machine can give itself any number.
const maxAddresses = 4096

func (s *Server) machineAddresses(m *registry.Machine) ([]machine1.Address, error) {
	var found []netaddr.Address
	var err error
	switch m.Class {
	case registry.ClassHost:
		found, err = netaddr.Host()
	case registry.ClassContainer:
		found, err = s.net.Addresses(m.Leader.PID, m.Leader.FDID)
	default:
		return nil, notSupported("Requesting IP address data is only supported on container machines.")
	}
	if errors.Is(err, netaddr.ErrSharedNamespace) {
		return nil, dbus.Errorf(machine1.ErrorNoPrivateNetworking, "Machine %s does not use private networking", m.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("get addresses of machine %q: %w", m.Name, err)
	}
	out := make([]machine1.Address, min(len(found), maxAddresses))
	for i := range out {
		family := unix.AF_INET6
		if found[i].IP.Is4() {
			family = unix.AF_INET
		}
		out[i] = machine1.Address{Family: int32(family), Bytes: found[i].IP.AsSlice()}
	}
	return out, nil
}

func (s *Server) addresses(_ context.Context, _ *dbus.Call, m registry.Machine) ([]any, error) {
	out, err := s.machineAddresses(&m)
	if err != nil {
		return nil, err
	}
	return []any{out}, nil
}

func (s *Server) sshInfo(_ context.Context, _ *dbus.Call, m registry.Machine) ([]any, error) {
	if m.SSHAddress == "" || m.SSHPrivateKey == "" {
		return nil, fmt.Errorf("get SSH information of machine %q: %w", m.Name, unix.ENOENT)
	}
	return []any{m.SSHAddress, m.SSHPrivateKey}, nil
}

func (s *Server) machineOSRelease(ctx context.Context, m *registry.Machine) (envfile.Pairs, error) {
	var fields envfile.Pairs
	var err error
	switch m.Class {
	case registry.ClassHost, registry.ClassContainer:
		err = s.withLeader(m, func(p *sys.Process) error {
			fields, err = nsexec.OSRelease(ctx, p, m.UID)
			return err
		})
	default:
		return nil, notSupported("Requesting OS release data is only supported on container machines.")
	}
	if err != nil {
		return nil, fmt.Errorf("get OS release of machine %q: %w", m.Name, err)
	}
	return fields, nil
}

// entries are assignments as they go over the bus, in the order of their file.
func entries(fields envfile.Pairs) dbus.OrderedStrings {
	out := make(dbus.OrderedStrings, len(fields))
	for i, f := range fields {
		out[i] = dbus.StringEntry(f)
	}
	return out
}

func (s *Server) osRelease(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
	if err := s.authorize(ctx, c, actionInspect, details{"machine", m.Name, "verb", "get_os_release"}); err != nil {
		return nil, err
	}
	fields, err := s.machineOSRelease(ctx, &m)
	if err != nil {
		return nil, err
	}
	return []any{entries(fields)}, nil
}

func (s *Server) uidShift(_ context.Context, _ *dbus.Call, m registry.Machine) ([]any, error) {
	var shift uint32
	switch m.Class {
	case registry.ClassHost:
		return []any{shift}, nil
	case registry.ClassContainer:
	default:
		return nil, notSupported("UID/GID shift may only be determined for container machines.")
	}
	err := s.withLeader(&m, func(p *sys.Process) (err error) {
		shift, err = nsexec.UIDShift(p)
		return err
	})
	if errors.Is(err, unix.ENXIO) {
		return nil, notSupported("Machine %s uses a complex UID/GID mapping, cannot determine shift", m.Name)
	}
	return []any{shift}, err
}

func (s *Server) openRootDirectory(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
	if err := s.authorize(ctx, c, actionManage, details{"machine", m.Name, "verb", "open_root_directory"}); err != nil {
		return nil, err
	}
	if m.Class != registry.ClassHost && m.Class != registry.ClassContainer {
		return nil, notSupported("Opening the root directory is only supported on container machines.")
	}
	var out []any
	err := s.withLeader(&m, func(p *sys.Process) error {
		root, err := nsexec.OpenRootDirectory(ctx, p)
		if err == nil {
			out = []any{root}
		}
		return err
	})
	return out, err
}

// checkPath returns an error unless p is absolute and normalized.
func checkPath(what, p string) error {
	if !path.IsAbs(p) || strings.ContainsRune(p, 0) || len(p) >= unix.PathMax {
		return invalid("%s path must be absolute: '%.255s'", what, p)
	}
	if clean := path.Clean(p); clean != p && clean+"/" != p {
		return invalid("%s path must be normalized, without '.', '..' and '//': '%.255s'", what, p)
	}
	return nil
}

// twoPaths checks source and destination; an empty destination is the source.
func twoPaths(source, destination string) (string, string, error) {
	if err := checkPath("Source", source); err != nil {
		return "", "", err
	}
	if destination == "" {
		destination = source
	}
	if err := checkPath("Destination", destination); err != nil {
		return "", "", err
	}
	return path.Clean(source), path.Clean(destination), nil
}

func (s *Server) bindMount(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
	if m.Class != registry.ClassContainer {
		return nil, notSupported("Bind mounting is only supported on container machines.")
	}
	source, destination, err := twoPaths(c.String(0), c.String(1))
	if err != nil {
		return nil, err
	}
	d := details{"machine", m.Name, "verb", "bind", "src", source, "dest", destination}
	if err := s.authorize(ctx, c, actionManage, d); err != nil {
		return nil, err
	}
	b := nsexec.Bind{Source: source, Destination: destination, ReadOnly: c.Bool(2), Mkdir: c.Bool(3)}
	return nil, s.withLeader(&m, func(p *sys.Process) error { return s.binds.Mount(ctx, m.Name, p, b) })
}

func (s *Server) copyFrom(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
	return s.copy(ctx, c, m, false)
}

func (s *Server) copyTo(ctx context.Context, c *dbus.Call, m registry.Machine) ([]any, error) {
	return s.copy(ctx, c, m, true)
}

// copyReplace is the flag of Copy*WithFlags that lets existing files be
// overwritten; no other is defined.
const copyReplace = 1

func (s *Server) copy(ctx context.Context, c *dbus.Call, m registry.Machine, to bool) ([]any, error) {
	if m.Class != registry.ClassContainer {
		return nil, notSupported("Copying files is only supported on container machines.")
	}
	var flags uint64
	if len(c.Args) > 2 {
		flags = c.Uint64(2)
	}
	if flags&^copyReplace != 0 {
		return nil, invalid("Invalid copy flags %#x", flags)
	}
	source, destination, err := twoPaths(c.String(0), c.String(1))
	if err != nil {
		return nil, err
	}
	d := details{"machine", m.Name, "verb", "copy", "src", source, "dest", destination}
	if err := s.authorize(ctx, c, actionManage, d); err != nil {
		return nil, err
	}
	select {
	case s.copies <- struct{}{}:
		defer func() { <-s.copies }()
	default:
		return nil, dbus.Errorf(dbus.ErrorLimitsExceeded, "Too many ongoing copies, at most %d may run at once.", maxCopies)
	}
	job := nsexec.Copy{
		Source: source, Destination: destination, ToMachine: to, Replace: flags&copyReplace != 0,
		Progress: s.copyProgress(c.Sender, m.Name, source, destination),
	}
	return nil, s.withLeader(&m, func(p *sys.Process) error { return job.Run(ctx, p) })
}

// quietCopy is how long a copy takes before its caller is told of its progress.
const quietCopy = 250 * time.Millisecond

// copyProgress returns what tells the caller of a copy, and nobody else, how far
// it is. Who does not know the signal ignores it.
func (s *Server) copyProgress(caller, machine, source, destination string) func(copied, total uint64) {
	start := time.Now()
	return func(copied, total uint64) {
		if time.Since(start) < quietCopy {
			return
		}
		err := s.tree.EmitTo(caller, machine1.MachinePath(machine), machine1.OwnMachineInterface, "CopyProgress",
			source, destination, copied, total)
		if err != nil {
			s.log.WithField("machine", machine).WithField("sender", caller).WithError(err).Debug("cannot send CopyProgress")
		}
	}
}
