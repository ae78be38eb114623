package server

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"machined/image"
	"machined/internal/sys"
	"machined/polkit"
	"machined/registry"
)

func dbusPath(s string) godbus.ObjectPath { return godbus.ObjectPath(s) }

// fakeRegistry is a table with one container, led by this process.
type fakeRegistry struct {
	mu       sync.Mutex
	machines map[string]registry.Machine
	did      []string
	console  string
}

func (r *fakeRegistry) Console(string, int) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.console == "" {
		return nil, fmt.Errorf("no log: %w", registry.ErrNotSupported)
	}
	return []byte(r.console), nil
}

func (r *fakeRegistry) heard() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.did)
}

func (r *fakeRegistry) setConsole(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.console = text
}

func newFakeRegistry() *fakeRegistry {
	return &fakeRegistry{machines: map[string]registry.Machine{
		".host": {Name: ".host", Class: registry.ClassHost, Leader: registry.Process{PID: 1}, State: registry.StateRunning, VSockCID: registry.VSockCIDAny},
		"web":   {Name: "web", Class: registry.ClassContainer, Service: "test", Leader: registry.Process{PID: os.Getpid()}, State: registry.StateRunning, UID: 4242},
		"vm":    {Name: "vm", Class: registry.ClassVM, Leader: registry.Process{PID: os.Getpid()}, State: registry.StateRunning},
	}}
}

func (r *fakeRegistry) Changes() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return uint64(len(r.machines))
}

func (r *fakeRegistry) ByMember(pid int) (registry.Machine, bool) {
	m, err := r.ByPID(pid)
	return m, err == nil
}

func (r *fakeRegistry) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.did = append(r.did, fmt.Sprintf(format, args...))
}

func (r *fakeRegistry) AwaitEnd(context.Context, string) {}

func (r *fakeRegistry) Check(req registry.CreateRequest) error {
	if !registry.ValidName(req.Name) || req.Leader != nil && req.Leader.PID() == 1 {
		return fmt.Errorf("name %q: %w", req.Name, registry.ErrInvalid)
	}
	if _, err := r.Get(req.Name); err == nil {
		return fmt.Errorf("Machine '%s' already exists: %w", req.Name, registry.ErrMachineExists) //nolint:staticcheck // stock's text
	}
	return nil
}

func (r *fakeRegistry) Create(_ context.Context, req registry.CreateRequest) (registry.Machine, error) {
	r.note("create %s %d %v", req.Name, req.Leader.PID(), req.NetIfs)
	return registry.Machine{Name: req.Name}, nil
}

func (r *fakeRegistry) Register(_ context.Context, req registry.CreateRequest) (registry.Machine, error) {
	r.note("register %s %d", req.Name, req.Leader.PID())
	return registry.Machine{Name: req.Name}, nil
}

func (r *fakeRegistry) Unregister(_ context.Context, name string) error {
	r.note("unregister %s", name)
	return nil
}

func (r *fakeRegistry) Terminate(_ context.Context, name string) error {
	r.note("terminate %s", name)
	return nil
}

func (r *fakeRegistry) Kill(_ context.Context, name, whom string, sig unix.Signal) error {
	r.note("kill %s %s %d", name, whom, sig)
	return nil
}

func (r *fakeRegistry) Get(name string) (registry.Machine, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m, ok := r.machines[name]; ok {
		return m, nil
	}
	return registry.Machine{}, fmt.Errorf("machine %q: %w", name, registry.ErrNoSuchMachine)
}

func (r *fakeRegistry) List() []registry.Machine {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []registry.Machine
	for _, name := range slices.Sorted(maps.Keys(r.machines)) {
		out = append(out, r.machines[name])
	}
	return out
}

func (r *fakeRegistry) ByPID(pid int) (registry.Machine, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.machines {
		if pid > 1 && m.Leader.PID == pid && (pid != os.Getpid() || m.Name == "web") {
			return m, nil
		}
	}
	return registry.Machine{}, registry.ErrNoMachineForPID
}

func (r *fakeRegistry) Owns(name string, uid uint32) bool {
	m, err := r.Get(name)
	return err == nil && m.UID == uid
}

func (r *fakeRegistry) Leader(name string) (*sys.Process, error) {
	m, err := r.Get(name)
	if err != nil {
		return nil, err
	}
	return sys.OpenProcess(m.Leader.PID)
}

func (r *fakeRegistry) Start(_ context.Context, req registry.StartRequest) error {
	r.note("start %s", req.Image)
	return nil
}

func (r *fakeRegistry) Enable(_ context.Context, names []string, on bool) ([]registry.UnitChange, error) {
	r.note("enable %v %v", names, on)
	return nil, nil
}

// fakeImages has .host only; what changes images is not reached by these tests.
type fakeImages struct{ ImageStore }

func (fakeImages) List(context.Context) ([]image.Image, error) {
	return []image.Image{{Name: ".host", Type: image.TypeDirectory, Path: "/"}}, nil
}

func (fakeImages) Get(_ context.Context, name string) (image.Image, error) {
	if name == ".host" {
		return image.Image{Name: ".host", Type: image.TypeDirectory, Path: "/"}, nil
	}
	return image.Image{}, fmt.Errorf("image %q: %w", name, image.ErrNoSuchImage)
}
func (fakeImages) PoolPath() string  { return "/var/lib/machines" }
func (fakeImages) PoolUsage() uint64 { return image.Unknown }
func (fakeImages) PoolLimit() uint64 { return image.Unknown }

// fakeAuthority records questions and gives one answer.
type fakeAuthority struct {
	mu     sync.Mutex
	answer error
	asked  []string
}

func (a *fakeAuthority) Check(_ context.Context, _, action string, details map[string]string, interactive bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, fmt.Sprintf("%s %v %v", action, details, interactive))
	return a.answer
}

var _ Authority = (*polkit.Authority)(nil)
