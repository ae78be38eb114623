package varlink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Handler does one call. What it returns is the last reply; a nil value is the
// empty reply. Errors that are no *Error become permission or errno replies.
// ctx ends when the caller leaves or the server stops.
type Handler func(ctx context.Context, call *Call) (any, error)

// Method is one method of an interface.
type Method struct {
	Handler Handler
	// NeedsMore refuses calls without the flag "more" (ExpectedMore).
	NeedsMore bool
}

// Interface is an interface with its description and its methods, which are
// keyed by their short names.
type Interface struct {
	Name        string
	Description string // the varlink IDL text
	Methods     map[string]Method
}

// Limits bounds what callers can cost. Zero values take the defaults.
type Limits struct {
	MessageBytes   int           // one call; 1 MiB
	Connections    int           // all together; 512
	PerUID         int           // of one user but root; 64
	WriteTimeout   time.Duration // until a reply is taken; 10 s
	PipelinedCalls int           // read ahead of the one that runs; 16
}

// Config says what a server is.
type Config struct {
	Vendor, Product, Version, URL string // for GetInfo
	Interfaces                    []Interface
	Limits                        Limits
	Log                           logrus.FieldLogger
}

// Server answers calls on any number of listeners. It is safe for concurrent use.
type Server struct {
	cfg        Config
	interfaces map[string]Interface

	mu     sync.Mutex
	total  int
	perUID map[uint32]int
}

// NewServer returns a server for the interfaces of cfg and org.varlink.service.
func NewServer(cfg Config) *Server {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&cfg.Limits.MessageBytes, 1<<20)
	def(&cfg.Limits.Connections, 512)
	def(&cfg.Limits.PerUID, 64)
	def(&cfg.Limits.PipelinedCalls, 16)
	if cfg.Limits.WriteTimeout <= 0 {
		cfg.Limits.WriteTimeout = 10 * time.Second
	}
	s := &Server{cfg: cfg, interfaces: map[string]Interface{}, perUID: map[uint32]int{}}
	for _, iface := range cfg.Interfaces {
		s.interfaces[iface.Name] = iface
	}
	service := s.service()
	s.interfaces[service.Name] = service
	return s
}

// Serve accepts callers until ctx ends, then closes the listener and all its
// connections and waits for their handlers.
func (s *Server) Serve(ctx context.Context, listener *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			if !temporary(err) {
				return fmt.Errorf("accept varlink caller: %w", err)
			}
			// Out of descriptors or memory: nothing to wait on but other
			// connections' ends, so let a moment pass instead of spinning.
			s.cfg.Log.WithError(err).Warn("cannot accept varlink caller")
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		peer, err := newPeer(conn)
		if err != nil || !s.admit(peer.UID) {
			_ = conn.Close()
			continue
		}
		conns.Go(func() {
			defer s.leave(peer.UID)
			s.serveConn(ctx, conn, peer)
		})
	}
}

func temporary(err error) bool {
	for _, errno := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.ECONNABORTED, unix.EINTR, unix.EAGAIN} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// admit counts a new connection in, unless there are too many. Root is only
// bound by the total, of which other users together can take three quarters.
func (s *Server) admit(uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= s.cfg.Limits.Connections {
		return false
	}
	if uid != 0 && (s.perUID[uid] >= s.cfg.Limits.PerUID ||
		s.total-s.perUID[0] >= s.cfg.Limits.Connections*3/4) {
		return false
	}
	s.total++
	s.perUID[uid]++
	return true
}

func (s *Server) leave(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	s.perUID[uid]--
	if s.perUID[uid] == 0 {
		delete(s.perUID, uid)
	}
}

// Connections is how many callers are connected.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

const serviceDescription = `# The Varlink service interface is provided by every varlink service. It
# describes the service and the interfaces it implements.
interface org.varlink.service

# Get a list of all the interfaces a service provides and information
# about the implementation.
method GetInfo() -> (
	vendor: string,
	product: string,
	version: string,
	url: string,
	interfaces: []string
)

# Get the description of an interface that is implemented by this service.
method GetInterfaceDescription(interface: string) -> (description: string)

# The requested interface was not found.
error InterfaceNotFound(interface: string)

# The requested method was not found
error MethodNotFound(method: string)

# The interface defines the requested method, but the service does not
# implement it.
error MethodNotImplemented(method: string)

# One of the passed parameters is invalid.
error InvalidParameter(parameter: string)

# Client is denied access
error PermissionDenied()

# Method is expected to be called with 'more' set, but wasn't
error ExpectedMore()
`

func (s *Server) service() Interface {
	type info struct {
		Vendor     string   `json:"vendor"`
		Product    string   `json:"product"`
		Version    string   `json:"version"`
		URL        string   `json:"url"`
		Interfaces []string `json:"interfaces"`
	}
	return Interface{
		Name:        "org.varlink.service",
		Description: serviceDescription,
		Methods: map[string]Method{
			"GetInfo": {Handler: func(_ context.Context, call *Call) (any, error) {
				if err := call.Params.Done(); err != nil {
					return nil, err
				}
				names := make([]string, 0, len(s.interfaces))
				for name := range s.interfaces {
					names = append(names, name)
				}
				slices.Sort(names)
				return info{s.cfg.Vendor, s.cfg.Product, s.cfg.Version, s.cfg.URL, names}, nil
			}},
			"GetInterfaceDescription": {Handler: func(_ context.Context, call *Call) (any, error) {
				name := call.Params.RequiredString("interface")
				if err := call.Params.Done(); err != nil {
					return nil, err
				}
				iface, ok := s.interfaces[name]
				if !ok {
					return nil, &Error{ErrorInterfaceNotFound, map[string]any{"interface": name}}
				}
				return map[string]string{"description": iface.Description}, nil
			}},
		},
	}
}
