// Package server is org.freedesktop.import1 on the bus: the Manager and Transfer
// objects. It checks arguments, has callers authorised, keeps the table of
// running transfers and hands each to a worker. It never touches an image itself.
package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"sync"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"machined/dbus"
	"machined/dbus/import1"
	"machined/dbus/logcontrol"
	"machined/image"
	"machined/polkit"
	"machined/transfer"
)

// maxTransfers is how many transfers run at once.
const maxTransfers = 64

// Authority says whether the peer sender may do action (polkit.Authority). Root
// has been let through already.
type Authority interface {
	Check(ctx context.Context, sender, action string, details map[string]string, interactive bool) error
}

// Worker is a transfer that runs.
type Worker interface {
	// Wait returns when it is over; nil when it was done.
	Wait() error
	// Stop asks it to end; with force it ends at once.
	Stop(force bool)
}

// Launcher starts workers. The request's File stays the caller's.
type Launcher interface {
	Start(req transfer.Request) (Worker, error)
}

// Config is what a server is made of.
type Config struct {
	Conn      *godbus.Conn // from dbus.Connect
	Authority Authority
	Launcher  Launcher
	Log       logrus.FieldLogger
	// Stores has the image store of each class.
	Stores map[image.Class]*image.Store
	// User says that the stores are those of the user whose bus this is.
	User bool
}

// Server exports import1.
type Server struct {
	cfg  Config
	tree *dbus.Tree
	log  logrus.FieldLogger

	// mu guards the fields below.
	mu        sync.Mutex
	transfers map[uint32]*running
	last      uint32 // id given last
	active    time.Time
	idle      chan struct{} // told when the last transfer has ended
	workers   sync.WaitGroup
}

// running is a transfer in the table.
type running struct {
	id       uint32
	req      transfer.Request
	worker   Worker
	canceled bool
	stops    int
	progress float64
	watch    Watch
}

// New makes a server; Export makes it reachable.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = logrus.StandardLogger()
	}
	return &Server{cfg: cfg, log: cfg.Log, transfers: map[uint32]*running{}, active: time.Now(), idle: make(chan struct{}, 1)}
}

// Export puts all objects on the bus.
func (s *Server) Export(ctx context.Context) error {
	s.tree = dbus.TreeOf(s.cfg.Conn)
	if s.tree == nil {
		return errors.New("export import1: the connection was not made by dbus.Connect")
	}
	s.tree.SetLog(s.log)
	s.tree.Add(import1.ManagerPath, nil, s.managerInterface(), s.ownInterface())
	s.tree.Add(logcontrol.Path, nil, logcontrol.Interface(logcontrol.Config{
		Log: s.log, Identifier: "systemd-importd", OwnUID: uint32(os.Geteuid()),
	}))
	s.tree.AddChildren(import1.TransferParent, dbus.Children{
		Interfaces: []*dbus.Interface{s.transferInterface()},
		Find: func(_ context.Context, _ *dbus.Call, label string) (any, error) {
			id, ok := import1.ParseTransferLabel(label)
			if !ok {
				return nil, nil
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if t := s.transfers[id]; t != nil {
				return t, nil
			}
			return nil, nil
		},
		List: func(context.Context) []string {
			var labels []string
			for _, t := range s.list() {
				labels = append(labels, import1.TransferLabel(t.id))
			}
			return labels
		},
	})
	return s.tree.Watch(ctx)
}

// RequestName takes the well-known name. From then on calls are answered.
func (s *Server) RequestName(ctx context.Context) error {
	var reply uint32
	err := s.cfg.Conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.RequestName", 0,
		import1.BusName, uint32(godbus.NameFlagDoNotQueue)).Store(&reply)
	if err != nil {
		return fmt.Errorf("request name %s: %w", import1.BusName, err)
	}
	if godbus.RequestNameReply(reply) != godbus.RequestNameReplyPrimaryOwner {
		return fmt.Errorf("request name %s: somebody else has it", import1.BusName)
	}
	return nil
}

// ReleaseName gives the name back, so that calls from then on start a new server.
func (s *Server) ReleaseName(ctx context.Context) error {
	return s.cfg.Conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.ReleaseName", 0, import1.BusName).Err
}

// WaitIdle returns nil when nothing was asked for, and no transfer ran, for span.
func (s *Server) WaitIdle(ctx context.Context, span time.Duration) error {
	timer := time.NewTimer(span)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.idle:
		case <-timer.C:
		}
		s.mu.Lock()
		left := span - time.Since(s.active)
		busy := len(s.transfers) > 0
		s.mu.Unlock()
		if !busy && left <= 0 {
			return nil
		}
		timer.Reset(max(left, time.Second))
	}
}

// Drain waits for the calls and transfers that are under way. No new call comes
// once the name has been given back, but by the connection's unique name.
func (s *Server) Drain() {
	s.tree.Wait()
	s.workers.Wait()
}

// Close ends all transfers and waits for their workers.
func (s *Server) Close() {
	for _, t := range s.list() {
		s.stop(t)
	}
	s.workers.Wait()
}

func (s *Server) touch() {
	s.mu.Lock()
	s.active = time.Now()
	s.mu.Unlock()
}

func (s *Server) list() []*running {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*running, 0, len(s.transfers))
	for _, t := range s.transfers {
		list = append(list, t)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].id < list[j].id })
	return list
}

// progressOf reads what its worker last told.
func (s *Server) progressOf(t *running) float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return t.progress
}

// start puts a transfer in the table and starts its worker.
func (s *Server) start(req transfer.Request, watch Watch) (*running, error) {
	t := &running{req: req, progress: import1.UnknownProgress, watch: watch}
	s.mu.Lock()
	if len(s.transfers) >= maxTransfers {
		s.mu.Unlock()
		return nil, fmt.Errorf("%d transfers run already, which is the limit: %w", maxTransfers, unix.E2BIG)
	}
	if req.Kind.Pulls() {
		for _, other := range s.transfers {
			if other.req.Kind == req.Kind && other.req.Remote == req.Remote {
				s.mu.Unlock()
				return nil, dbus.Errorf(import1.ErrorTransferInProgress, "Transfer for %s already in progress.", req.Remote)
			}
		}
	}
	s.last++
	t.id = s.last
	s.transfers[t.id] = t
	s.mu.Unlock()

	path := import1.TransferPath(t.id)
	ready := make(chan struct{}) // no line of the worker overtakes TransferNew
	t.req.Log = func(priority int, line string) {
		<-ready
		logLine(s.log.WithField("transfer", t.id), priority, line)
		s.emit(path, import1.TransferInterface, "LogMessage", uint32(priority), line)
		if watch.Log != nil {
			watch.Log(priority, line)
		}
	}
	t.req.Progress = func(fraction float64) {
		<-ready
		s.mu.Lock()
		t.progress = fraction
		s.mu.Unlock()
		s.emit(path, import1.TransferInterface, "ProgressUpdate", fraction)
		if watch.Progress != nil {
			watch.Progress(fraction)
		}
	}
	worker, err := s.cfg.Launcher.Start(t.req)
	s.mu.Lock()
	if err != nil {
		delete(s.transfers, t.id)
		s.mu.Unlock()
		return nil, err
	}
	t.worker = worker
	s.mu.Unlock()
	s.emit(import1.ManagerPath, import1.ManagerInterface, "TransferNew", t.id, path)
	close(ready)
	s.workers.Go(func() { s.finish(t, worker.Wait()) })
	return t, nil
}

// logLine writes a worker's line with its priority of syslog(3).
func logLine(log logrus.FieldLogger, priority int, line string) {
	switch {
	case priority <= transfer.Err:
		log.Error(line)
	case priority == transfer.Warning:
		log.Warn(line)
	case priority == transfer.Debug:
		log.Debug(line)
	default:
		log.Info(line)
	}
}

// finish takes a transfer that is over out of the table and tells everybody.
func (s *Server) finish(t *running, err error) {
	s.mu.Lock()
	delete(s.transfers, t.id)
	s.active = time.Now()
	result := import1.ResultDone
	switch {
	case err != nil && t.canceled:
		result = import1.ResultCanceled
	case err != nil:
		result = import1.ResultFailed
	}
	s.mu.Unlock()
	log := s.log.WithField("transfer", t.id).WithField("image", t.req.Local).WithField("result", result)
	if err != nil {
		log = log.WithError(err)
	}
	log.Info("Transfer ended")
	if err != nil {
		// A worker that was killed could not clean up.
		if err := s.cfg.Stores[t.req.Class].CleanTemporary(); err != nil {
			log.WithError(err).Warn("Leftovers not removed")
		}
	}
	s.emit(import1.ManagerPath, import1.ManagerInterface, "TransferRemoved", t.id, import1.TransferPath(t.id), result)
	if t.watch.Ended != nil {
		t.watch.Ended(result)
	}
	select {
	case s.idle <- struct{}{}:
	default:
	}
}

// maxPolite is how many requests to stop a worker may treat as requests.
const maxPolite = 3

// stop cancels a transfer; asked often enough, it kills the worker.
func (s *Server) stop(t *running) {
	s.mu.Lock()
	t.canceled = true
	t.stops++
	force, worker := t.stops > maxPolite, t.worker
	s.mu.Unlock()
	if worker != nil {
		worker.Stop(force)
	}
}

func (s *Server) emit(path godbus.ObjectPath, iface, member string, values ...any) {
	if err := s.tree.Emit(path, iface, member, values...); err != nil {
		s.log.WithError(err).Warn("Signal not sent")
	}
}

// authorize lets the caller do action, or says why not.
func (s *Server) authorize(ctx context.Context, c *dbus.Call, action string) error {
	creds, err := c.Credentials(ctx)
	if err != nil {
		return err
	}
	if creds.UID == 0 || creds.UID == uint32(os.Geteuid()) {
		return nil
	}
	if s.cfg.Authority == nil {
		return dbus.Errorf(dbus.ErrorAccessDenied, "Access denied")
	}
	err = s.cfg.Authority.Check(ctx, c.Sender, import1.BusName+"."+action, nil, c.Interactive)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, polkit.ErrInteractionRequired):
		return dbus.Errorf(dbus.ErrorInteractiveAuthorizationRequired, "Interactive authentication required.")
	}
	s.log.WithField("sender", c.Sender).WithField("action", action).WithError(err).Debug("refused")
	return dbus.Errorf(dbus.ErrorAccessDenied, "Access denied")
}

// errorNames turns the sentinels of the packages below into names on the bus.
var errorNames = []struct {
	is   error
	name string
}{
	{transfer.ErrInvalid, dbus.ErrorInvalidArgs},
	{transfer.ErrNotSupported, dbus.ErrorNotSupported},
	{image.ErrInvalidName, dbus.ErrorInvalidArgs},
	{image.ErrInvalid, dbus.ErrorInvalidArgs},
	{polkit.ErrInteractionRequired, dbus.ErrorInteractiveAuthorizationRequired},
	{polkit.ErrDenied, dbus.ErrorAccessDenied},
}

func named(err error) error {
	for _, row := range errorNames {
		if errors.Is(err, row.is) {
			return dbus.Errorf(row.name, "%w", err)
		}
	}
	return err
}
