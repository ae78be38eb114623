// Package machine serves machined's varlink interfaces io.systemd.Machine,
// io.systemd.MachineImage and io.systemd.service, and binds the sockets of
// these and of the user database and the resolver hook beside them. Each method
// reads its parameters, has the caller authorised, and makes one call to the
// registry, the image store or nsexec; no state of a machine lives here.
package machine

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"machined/internal/mapped"
	"machined/internal/netaddr"
	"machined/internal/nsexec"
	"machined/internal/sys"
	"machined/nss"
	"machined/registry"
	"machined/varlink"
	"machined/varlink/resolve"
	"machined/varlink/service"
	"machined/varlink/userdb"
)

// Registry is what the services ask of the table of machines.
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
	Leader(name string) (*sys.Process, error)
	Owns(name string, uid uint32) bool
	Notify(registry.Listener)
}

// Authority says whether a process of the user uid may do an action.
type Authority interface {
	CheckProcess(ctx context.Context, p *sys.Process, uid uint32, action string, details map[string]string, interactive bool) error
}

// Terminals starts sessions inside machines, by the machine's own service
// manager, for the user uid.
type Terminals interface {
	OpenLogin(ctx context.Context, uid uint32, m registry.Machine) (*nsexec.PTY, error)
	// OpenShell fills in what an empty user, path and args stand for and checks
	// the request; then it asks authorize about it, and then acts.
	OpenShell(ctx context.Context, uid uint32, m registry.Machine, user, path string, args, environment []string,
		authorize func(user, program, commandLine string) error) (*nsexec.PTY, error)
}

// Binds mounts host paths into machines and remembers them (nsexec.Binds).
type Binds interface {
	Mount(ctx context.Context, machine string, p *sys.Process, b nsexec.Bind) error
}

// Config is what the services are made of.
type Config struct {
	Registry  Registry
	Images    Images    // nil: io.systemd.MachineImage is not served
	Authority Authority // nil: nobody but root and OwnUID
	Terminals Terminals // nil: modes login and shell are not supported
	Binds     Binds
	Net       *netaddr.Cache // nil: a cache of the services' own
	PTYs      *nsexec.PTYs   // nil: terminals of users are counted here alone
	Log       logrus.FieldLogger
	Version   string

	// User serves one user's own machines: sockets are 0600, nobody else is let
	// in, and there is no user database, no resolver hook and no NSS.
	User   bool
	OwnUID uint32
	// RunDir is /run, or $XDG_RUNTIME_DIR of a user's own instance.
	RunDir string
	// Listeners are sockets that the service manager has bound (file descriptor
	// name "varlink"): for io.systemd.Machine, and, as a sequential packet
	// socket, for the NSS module. What is not among them is bound here.
	Listeners []net.Listener
}

// Services are the varlink services of one machined.
type Services struct {
	cfg    Config
	log    logrus.FieldLogger
	net    *netaddr.Cache
	ownNet bool // net is nobody else's
	ids    *mapped.Directory
	names  *nss.Directory
	hook   *resolve.Hook
	server *varlink.Server
	copies chan struct{}
}

// maxPTYs is how many terminals a user may have open that are from here.
const maxPTYs = 256

// maxCopies is how many copies run at once, for all callers together.
const maxCopies = 64

// New makes the services; Serve binds and answers.
func New(cfg Config) *Services {
	if cfg.Log == nil {
		cfg.Log = logrus.StandardLogger()
	}
	if cfg.RunDir == "" {
		cfg.RunDir = "/run"
	}
	if cfg.PTYs == nil {
		cfg.PTYs = nsexec.NewPTYs(maxPTYs)
	}
	if cfg.Binds == nil {
		cfg.Binds = nsexec.NewBinds(filepath.Join(cfg.RunDir, "machined/binds"))
	}
	ownNet := cfg.Net == nil
	if ownNet {
		cfg.Net = &netaddr.Cache{}
	}
	s := &Services{
		cfg: cfg, log: cfg.Log, net: cfg.Net, ownNet: ownNet, names: nss.NewDirectory(cfg.Registry, cfg.Net),
		copies: make(chan struct{}, maxCopies),
	}
	s.ids = s.names.IDs
	s.hook = resolve.New(cfg.Registry, s.names)
	interfaces := []varlink.Interface{s.machineInterface(), service.Interface(service.Config{Log: s.log, OwnUID: s.cfg.OwnUID})}
	if cfg.Images != nil {
		interfaces = append(interfaces, s.imageInterface())
	}
	s.server = s.newServer(interfaces...)
	return s
}

func (s *Services) newServer(interfaces ...varlink.Interface) *varlink.Server {
	return varlink.NewServer(varlink.Config{
		Vendor: "machined", Product: "machined", Version: s.cfg.Version, URL: "https://systemd.io/",
		Interfaces: interfaces, Log: s.log,
	})
}

// listener lets go of what is kept for a machine that has ended.
type listener struct{ s *Services }

func (l listener) MachineAdded(m registry.Machine) { l.s.hook.MachineAdded(m) }

func (l listener) MachineRemoved(m registry.Machine) {
	l.s.net.Forget(m.Leader.PID, m.Leader.FDID)
	l.s.hook.MachineRemoved(m)
}

// socket is one socket and who answers there.
type socket struct {
	listener *net.UnixListener
	server   *varlink.Server
}

// Serve binds the sockets, calls ready, and answers until ctx ends.
func (s *Services) Serve(ctx context.Context, ready func()) error {
	sockets, nssListener, err := s.bind()
	if err != nil {
		for _, socket := range sockets {
			_ = socket.listener.Close()
		}
		return err
	}
	s.cfg.Registry.Notify(listener{s})
	if s.ownNet {
		defer s.net.Close()
	}
	if ready != nil {
		ready()
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, socket := range sockets {
		group.Go(func() error { return socket.server.Serve(ctx, socket.listener) })
	}
	if nssListener != nil {
		group.Go(func() error { return nss.Serve(ctx, nssListener, s.names, s.log) })
	}
	return group.Wait()
}

func (s *Services) bind() (sockets []socket, nssListener *net.UnixListener, err error) {
	mode := fs.FileMode(0o666)
	if s.cfg.User {
		mode = 0o600
	}
	run := func(path string) string { return filepath.Join(s.cfg.RunDir, path) }
	add := func(path string, server *varlink.Server) error {
		l, err := varlink.Listen(path, mode)
		if err != nil {
			return err
		}
		sockets = append(sockets, socket{l, server})
		return nil
	}
	for _, l := range s.cfg.Listeners {
		unixListener, ok := l.(*net.UnixListener)
		if !ok {
			return sockets, nil, fmt.Errorf("use socket %q of the service manager: not a unix socket", l.Addr())
		}
		unixListener.SetUnlinkOnClose(false)
		if unixListener.Addr().Network() == "unixpacket" {
			nssListener = unixListener
			continue
		}
		sockets = append(sockets, socket{unixListener, s.server})
	}
	main := run("systemd/machine/io.systemd.Machine")
	if len(sockets) == 0 {
		if err := add(main, s.server); err != nil {
			return sockets, nil, err
		}
	}
	links := map[string]string{}
	for _, l := range []struct{ target, link string }{
		{"io.systemd.Machine", "systemd/machine/io.systemd.MachineImage"},
		{main, "varlink/registry/io.systemd.Machine"},
		{main, "varlink/registry/io.systemd.MachineImage"},
	} {
		links[run(l.link)] = l.target
	}
	for link, target := range links {
		if bound(sockets, link) {
			continue // the service manager has bound a socket here
		}
		if err := varlink.Link(target, link); err != nil {
			// Only discovery suffers.
			s.log.WithError(err).Warn("cannot link varlink socket")
		}
	}
	if s.cfg.User {
		return sockets, nil, nil
	}
	if err := add(run("systemd/userdb/"+userdb.Service), s.newServer(userdb.Interface(s.ids))); err != nil {
		return sockets, nil, err
	}
	if err := add(run("systemd/resolve.hook/io.systemd.Machine"), s.newServer(s.hook.Interface())); err != nil {
		return sockets, nil, err
	}
	if nssListener != nil {
		return sockets, nssListener, nil
	}
	nssListener, err = nss.Listen(run("systemd/machine/nss"))
	return sockets, nssListener, err
}

func bound(sockets []socket, path string) bool {
	for _, socket := range sockets {
		if socket.listener.Addr().String() == path {
			return true
		}
	}
	return false
}
