package registry

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"machined/internal/sys"
	"machined/internal/unit"
)

// Limits that keep the table bounded, whoever asks.
const (
	DefaultMaxMachines        = 16384
	DefaultMaxMachinesPerUser = 1024
)

// Config says where the registry keeps its state and what it acts on.
type Config struct {
	StateDir string // normally /run/systemd/machines
	Backend  Backend
	Log      logrus.FieldLogger
	// Journal records the start and the end of a machine; nil: only Log does.
	Journal func(Entry)
	// Store keeps the pidfds of machines while machined is away; nil: nobody does.
	Store Store
	// HostDir is the directory whose etc/machine-id and dev/vsock describe the
	// host; normally "/".
	HostDir string
	// MaxMachines and MaxPerUser bound the table; 0: the defaults. Root is held
	// to the first only.
	MaxMachines int
	MaxPerUser  int
	// User says that this is a user's own instance: there is no .host, and only
	// that user may register.
	User bool
	UID  uint32
}

// Entry is a line of the journal about a machine.
type Entry struct {
	Message   string
	MessageID string // of systemd.journal-fields(7)
	Name      string
	Leader    int
}

// Message ids of the journal's catalogue, as systemd has published them.
const (
	messageMachineStart = "24d8d4452573402496068381a6312df2"
	messageMachineStop  = "58432bd3bace477cb514b56381b8a758"
)

// Listener is told about machines as they come and go, in order, each call
// finished before the next begins. It must not change the registry.
type Listener interface {
	MachineAdded(Machine)
	MachineRemoved(Machine)
}

// Registry is the table of machines. It is safe for concurrent use.
type Registry struct {
	cfg    Config
	files  stateFiles
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// deliver is held while listeners run, so that they see one order. It is
	// taken before mu and never inside it.
	deliver sync.Mutex

	// changes counts the visible machines that have come and gone. It is
	// written with mu held.
	changes atomic.Uint64

	mu        sync.Mutex
	machines  map[string]*entry
	byLeader  map[int]*entry
	byUnit    map[string][]*entry
	byUser    map[uint32]int
	listeners []Listener
	events    []event // not yet delivered
	closed    bool
}

// entry is one machine of the table. Fields below guard are guarded by
// Registry.mu; the others never change after the entry is in the table.
type entry struct {
	m          Machine // State is computed, never stored
	leader     *sys.Process
	supervisor *sys.Process
	ownScope   bool // we made its unit

	visible    bool // false while its name is only reserved
	jobPending bool
	stopping   bool
	removed    bool
	// gone closes when the entry has left the table.
	gone chan struct{}
	// check is signalled when its facts may have changed.
	check chan struct{}

	// storing guards what Config.Store knows: stored, and dropped for good.
	storing sync.Mutex
	stored  bool
	dropped bool
}

type event struct {
	machine Machine
	added   bool
}

// New makes an empty registry. Load fills it from the state files.
func New(cfg Config) *Registry {
	if cfg.MaxMachines == 0 {
		cfg.MaxMachines = DefaultMaxMachines
	}
	if cfg.MaxPerUser == 0 {
		cfg.MaxPerUser = DefaultMaxMachinesPerUser
	}
	if cfg.HostDir == "" {
		cfg.HostDir = "/"
	}
	if cfg.Log == nil {
		log := logrus.New()
		log.SetLevel(logrus.PanicLevel)
		cfg.Log = log
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Registry{
		cfg:      cfg,
		files:    stateFiles{dir: filepath.Clean(cfg.StateDir)},
		ctx:      ctx,
		cancel:   cancel,
		machines: map[string]*entry{},
		byLeader: map[int]*entry{},
		byUnit:   map[string][]*entry{},
		byUser:   map[uint32]int{},
	}
}

// Notify adds a listener, which hears of everything that happens from now on.
func (r *Registry) Notify(l Listener) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listeners = append(r.listeners, l)
}

// Close stops watching. Machines go on, and their state files stay.
func (r *Registry) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.machines {
		e.close()
	}
}

func (e *entry) close() {
	if e.leader != nil {
		e.leader.Close()
	}
	if e.supervisor != nil {
		e.supervisor.Close()
	}
}

// ownsUnit reports whether nothing but the machine lives in its unit.
func ownsUnit(m *Machine) bool { return m.Unit != "" && m.Subgroup == "" && !m.Shared }

// shared reports whether others live beside a process in its unit, whose machine
// is registered for uid. A slice is never anybody's own, and init.scope is the
// service manager's. Users have processes in units that are not theirs, as jobs of
// cron(8) or by su(1); theirs is what the service manager has let them manage
// (Delegate= of systemd.resource-control(5)), so that they own the cgroup.
func (r *Registry) shared(pid int, unitName string, uid uint32) bool {
	if unitName == "" {
		return false
	}
	if unitName == "init.scope" || strings.HasSuffix(unitName, ".slice") {
		return true
	}
	if uid == 0 || r.cfg.User {
		return false
	}
	path, err := sys.CgroupOf(pid)
	return err != nil || !delegated(path, unitName, uid, r.cfg.Backend.CgroupOwner)
}

// delegated reports whether uid owns a cgroup, or one above it up to that of its unit.
func delegated(path, unitName string, uid uint32, owner func(string) (uint32, error)) bool {
	for strings.Contains(path+"/", "/"+unitName+"/") {
		if got, err := owner(path); err == nil && got == uid {
			return true
		}
		path = filepath.Dir(path)
	}
	return false
}

// Get returns the machine called name.
func (r *Registry) Get(name string) (Machine, error) {
	if name == HostName && !r.cfg.User {
		return r.host(), nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e, err := r.lookup(name)
	if err != nil {
		return Machine{}, err
	}
	return r.snapshot(e), nil
}

// lookup needs mu.
func (r *Registry) lookup(name string) (*entry, error) {
	if e, ok := r.machines[name]; ok && e.visible {
		return e, nil
	}
	return nil, &detailError{kind: ErrNoSuchMachine, text: fmt.Sprintf("No machine %s known", quoteName(name))}
}

func quoteName(name string) string {
	if ValidName(name) || name == HostName {
		return "'" + name + "'"
	}
	quoted, rest, _ := strings.Cut(clip(name), "...")
	return "'" + strings.Trim(quoted, `"`) + "'" + rest // the quotes that clients know
}

// snapshot needs mu.
func (r *Registry) snapshot(e *entry) Machine {
	m := e.m
	m.NetIfs = slices.Clone(m.NetIfs)
	m.State = stateOf(facts{stopping: e.stopping, jobPending: e.jobPending})
	return m
}

// List returns all machines, .host too, sorted by name.
func (r *Registry) List() []Machine {
	r.mu.Lock()
	out := make([]Machine, 0, len(r.machines)+1)
	for _, e := range r.machines {
		if e.visible {
			out = append(out, r.snapshot(e))
		}
	}
	r.mu.Unlock()
	if !r.cfg.User {
		out = append(out, r.host())
	}
	slices.SortFunc(out, func(a, b Machine) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Changes is a number that differs whenever List could name other machines than
// before. It costs next to nothing.
func (r *Registry) Changes() uint64 { return r.changes.Load() }

// Len is the number of machines, without .host.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, e := range r.machines {
		if e.visible {
			n++
		}
	}
	return n
}

// Leader returns a handle of its own on the leader of a machine; the caller
// closes it. The leader of .host is PID 1.
func (r *Registry) Leader(name string) (*sys.Process, error) {
	if name == HostName && !r.cfg.User {
		return sys.OpenProcess(1)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e, err := r.lookup(name)
	if err != nil {
		return nil, err
	}
	if e.leader == nil {
		return nil, fmt.Errorf("leader of machine %q: %w", name, unix.ESRCH)
	}
	return e.leader.Dup()
}

// emit delivers what is queued. When it returns, everything that was queued
// before the call has been delivered, by this goroutine or by another.
func (r *Registry) emit() {
	r.deliver.Lock()
	defer r.deliver.Unlock()
	for {
		r.mu.Lock()
		if len(r.events) == 0 {
			r.events = nil
			r.mu.Unlock()
			return
		}
		ev := r.events[0]
		r.events = r.events[1:]
		listeners := r.listeners
		r.mu.Unlock()
		for _, l := range listeners {
			if ev.added {
				l.MachineAdded(ev.machine)
			} else {
				l.MachineRemoved(ev.machine)
			}
		}
	}
}

// Announce tells the listeners of every machine that is there. It is called
// once, when a loaded registry has become reachable.
func (r *Registry) Announce() {
	r.mu.Lock()
	names := make([]string, 0, len(r.machines))
	for name, e := range r.machines {
		if e.visible {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		r.events = append(r.events, event{machine: r.snapshot(r.machines[name]), added: true})
	}
	r.mu.Unlock()
	r.emit()
}

func (r *Registry) journal(e Entry) {
	if r.cfg.Journal != nil {
		r.cfg.Journal(e)
		return
	}
	r.cfg.Log.WithField("machine", e.Name).WithField("leader", e.Leader).Info(e.Message)
}

// Start launches the spawner for an image and returns when the machine is up.
func (r *Registry) Start(ctx context.Context, req StartRequest) error {
	if !ValidName(req.Image) {
		return invalid("Invalid machine name %s: a machine name has 1 to %d characters, labels of letters, digits and '-' joined by single dots", clip(req.Image), MaxNameBytes)
	}
	if _, err := r.cfg.Backend.StartMachine(ctx, req.Image, req.Properties); err != nil {
		if je := (*JobError)(nil); errors.As(err, &je) {
			return err
		}
		return fmt.Errorf("start machine %q: %w", req.Image, err)
	}
	return nil
}

// StartRequest names the image to start as a machine.
type StartRequest struct {
	Image      string
	Properties ScopeProperties
}

// StartUnit is the unit in which Start runs the spawner for an image.
func StartUnit(image string) string { return unit.SpawnerName(image) }

// Enable makes the machines of images start with the host, or no longer.
func (r *Registry) Enable(ctx context.Context, names []string, on bool) ([]UnitChange, error) {
	for _, name := range names {
		if !ValidName(name) {
			return nil, invalid("Invalid machine name %s", clip(name))
		}
	}
	return r.cfg.Backend.Enable(ctx, names, on)
}

// Console returns the end of what the machine's spawner wrote, at most max
// bytes. It wraps ErrNotSupported where the journal has it instead.
func (r *Registry) Console(name string, max int) ([]byte, error) {
	m, err := r.Get(name)
	if err != nil {
		return nil, err
	}
	data, err := r.cfg.Backend.Console(m.Unit, max)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, &detailError{kind: ErrNotSupported, text: "the output of machines is in the journal"}
	}
	return data, err
}

// now returns the time of a registration on both clocks.
func now() (time.Time, time.Duration) {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	mono := time.Duration(ts.Nano()).Truncate(time.Microsecond)
	return time.Now().Truncate(time.Microsecond), mono
}
