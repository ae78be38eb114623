// Package server is org.freedesktop.machine1 on the bus: the Manager, Machine
// and Image objects of org.freedesktop.machine1(5) and our own interfaces
// beside them. Each method is one table row; it checks its arguments, has the
// caller authorised, and makes one call to the registry, the image store or
// nsexec. No state of a machine lives here, and no rule about one.
package server

import (
	"context"
	"errors"
	"fmt"

	godbus "github.com/godbus/dbus/v5"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"machined/dbus"
	"machined/dbus/logcontrol"
	"machined/dbus/machine1"
	"machined/internal/mapped"
	"machined/internal/netaddr"
	"machined/internal/nsexec"
	"machined/internal/sys"
	"machined/registry"
)

// Registry is what the server asks of the table of machines.
type Registry interface {
	AwaitEnd(ctx context.Context, name string)
	Check(registry.CreateRequest) error
	Create(context.Context, registry.CreateRequest) (registry.Machine, error)
	Register(context.Context, registry.CreateRequest) (registry.Machine, error)
	Unregister(ctx context.Context, name string) error
	Terminate(ctx context.Context, name string) error
	Kill(ctx context.Context, name, whom string, sig unix.Signal) error
	Get(name string) (registry.Machine, error)
	List() []registry.Machine
	ByPID(pid int) (registry.Machine, error)
	ByMember(pid int) (registry.Machine, bool)
	Changes() uint64
	Leader(name string) (*sys.Process, error)
	Owns(name string, uid uint32) bool
	Start(context.Context, registry.StartRequest) error
	Enable(ctx context.Context, names []string, on bool) ([]registry.UnitChange, error)
	Console(name string, max int) ([]byte, error)
}

// Authority says whether the peer sender may do action (polkit.Authority).
// Root has been let through already.
type Authority interface {
	Check(ctx context.Context, sender, action string, details map[string]string, interactive bool) error
}

// Config is what a server is made of.
type Config struct {
	Conn      *godbus.Conn // from dbus.Connect
	Registry  Registry
	Images    ImageStore // nil: no image object and no image method is exported
	Authority Authority
	// Tools runs the programs that CreateImage needs; nil: there are none.
	Tools Tools
	Log   logrus.FieldLogger
	// BindsDir keeps what was bound into machines; "" is /run/machined/binds.
	BindsDir string
	// Net tells the addresses of machines; nil: a cache of the server's own.
	Net *netaddr.Cache
	// OwnUID is the user whom a user's own instance serves without asking
	// polkit; root for the system's.
	OwnUID uint32
}

// Server exports machine1. It implements registry.Listener.
type Server struct {
	conn   *godbus.Conn
	tree   *dbus.Tree
	reg    Registry
	images ImageStore
	auth   Authority
	tools  Tools
	log    logrus.FieldLogger
	binds  *nsexec.Binds
	net    *netaddr.Cache
	ids    *mapped.Directory
	ownUID uint32
	ptys   *nsexec.PTYs
	copies chan struct{}
	list   listCache
}

// maxPTYs is how many terminals a user may have open that are from here.
const maxPTYs = 256

// maxCopies is how many copies run at once, for all callers together.
const maxCopies = 64

// New makes a server; Export makes it reachable.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = logrus.StandardLogger()
	}
	if cfg.BindsDir == "" {
		cfg.BindsDir = "/run/machined/binds"
	}
	if cfg.Net == nil {
		cfg.Net = &netaddr.Cache{}
	}
	return &Server{
		net: cfg.Net, ids: &mapped.Directory{Machines: cfg.Registry},
		conn: cfg.Conn, reg: cfg.Registry, images: cfg.Images, auth: cfg.Authority, tools: cfg.Tools, log: cfg.Log,
		ptys: nsexec.NewPTYs(maxPTYs), binds: nsexec.NewBinds(cfg.BindsDir), ownUID: cfg.OwnUID, copies: make(chan struct{}, maxCopies),
	}
}

// Export puts all objects on the bus. Callers reach them by the connection's
// unique name at once, and by the well-known one after RequestName.
func (s *Server) Export(ctx context.Context) error {
	s.tree = dbus.TreeOf(s.conn)
	if s.tree == nil {
		return errors.New("export machine1: the connection was not made by dbus.Connect")
	}
	s.tree.SetLog(s.log)
	s.tree.Add(machine1.ManagerPath, nil, s.managerInterface(), s.ownManagerInterface())
	s.tree.AddChildren(machine1.ManagerPath+"/machine", dbus.Children{
		Interfaces: []*dbus.Interface{s.machineInterface(), s.ownMachineInterface()},
		Find:       s.findMachine,
		List:       s.machineLabels,
	})
	if s.images != nil {
		s.tree.AddChildren(machine1.ManagerPath+"/image", dbus.Children{
			Interfaces: []*dbus.Interface{s.imageInterface()},
			Find:       s.findImage,
			List:       s.imageLabels,
		})
	}
	s.tree.Add(logcontrol.Path, nil, logcontrol.Interface(logcontrol.Config{Log: s.log, Identifier: "systemd-machined", OwnUID: s.ownUID}))
	return s.tree.Watch(ctx)
}

// RequestName takes the well-known name. From then on calls are answered.
func (s *Server) RequestName(ctx context.Context) error {
	var reply uint32
	err := s.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.RequestName", 0,
		machine1.BusName, uint32(godbus.NameFlagDoNotQueue)).Store(&reply)
	if err != nil {
		return fmt.Errorf("request name %s: %w", machine1.BusName, err)
	}
	if r := godbus.RequestNameReply(reply); r != godbus.RequestNameReplyPrimaryOwner && r != godbus.RequestNameReplyAlreadyOwner {
		return fmt.Errorf("request name %s: another program owns it", machine1.BusName)
	}
	return nil
}

// MachineAdded sends MachineNew.
func (s *Server) MachineAdded(m registry.Machine) { s.emit("MachineNew", m.Name) }

// MachineRemoved sends MachineRemoved.
func (s *Server) MachineRemoved(m registry.Machine) {
	s.emit("MachineRemoved", m.Name)
	s.net.Forget(m.Leader.PID, m.Leader.FDID)
	if err := s.binds.Forget(m.Name); err != nil {
		s.log.WithField("machine", m.Name).WithError(err).Warn("cannot drop list of bind mounts")
	}
}

func (s *Server) emit(member, machine string) {
	err := s.conn.Emit(machine1.ManagerPath, machine1.ManagerInterface+"."+member, machine, machine1.MachinePath(machine))
	if err != nil {
		s.log.WithField("machine", machine).WithError(err).Warn("cannot send " + member)
	}
}

// findMachine finds the machine of a path's last element; "self" is the
// caller's own.
func (s *Server) findMachine(ctx context.Context, c *dbus.Call, label string) (any, error) {
	if label == "self" {
		creds, err := c.Credentials(ctx)
		if err != nil {
			return nil, err
		}
		if m, err := s.reg.ByPID(creds.PID); err == nil {
			return m, nil
		}
		return nil, nil
	}
	name, ok := machine1.UnescapeLabel(label)
	if !ok {
		return nil, nil
	}
	m, err := s.reg.Get(name)
	if err != nil {
		return nil, nil
	}
	return m, nil
}

func (s *Server) machineLabels(context.Context) []string {
	list := s.reg.List()
	out := make([]string, len(list))
	for i := range list {
		out[i] = machine1.EscapeLabel(list[i].Name)
	}
	return out
}
