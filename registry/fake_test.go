package registry

import (
	"context"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
	"machined/internal/unit"
)

// fakeBackend is a service manager of maps.
type fakeBackend struct {
	mu       sync.Mutex
	active   map[string]bool
	stopped  []string
	killed   []string
	released []string
	startErr error
	job      chan error // nil: jobs end well at once
	event    func(unit.Event)
}

func newFake() *fakeBackend { return &fakeBackend{active: map[string]bool{}} }

func (f *fakeBackend) StartScope(_ context.Context, s unit.Scope) (unit.Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.startErr != nil {
		return unit.Job{}, f.startErr
	}
	f.active[s.Name] = true
	if f.job != nil {
		return unit.Job{ID: "/job/1", Done: f.job}, nil
	}
	return unit.Finished(nil), nil
}

func (f *fakeBackend) Stop(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = append(f.stopped, name)
	return nil
}

func (f *fakeBackend) Kill(_ context.Context, name, sub string, _ unix.Signal) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.killed = append(f.killed, name+"/"+sub)
	return nil
}

func (f *fakeBackend) Active(_ context.Context, name string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.active[name], nil
}

func (f *fakeBackend) Release(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.released = append(f.released, name)
	return nil
}

// wantReleased waits until a scope has been released.
func (f *fakeBackend) wantReleased(t testing.TB, name string) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		f.mu.Lock()
		released := slices.Contains(f.released, name)
		f.mu.Unlock()
		if released {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s was not released", name)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (f *fakeBackend) StartMachine(_ context.Context, image string, _ []unit.Property) (string, error) {
	return unit.SpawnerName(image), f.startErr
}

func (f *fakeBackend) Enable(context.Context, []string, bool) ([]unit.Change, error) { return nil, nil }
func (f *fakeBackend) Console(string, int) ([]byte, error)                           { return nil, nil }
func (f *fakeBackend) CgroupPrefix() string                                          { return "" }
func (f *fakeBackend) CgroupOwner(string) (uint32, error)                            { return 0, nil }

func (f *fakeBackend) Watch(_ context.Context, fn func(unit.Event)) error {
	f.event = fn
	return nil
}

func (f *fakeBackend) end(name string) {
	f.mu.Lock()
	f.active[name] = false
	f.mu.Unlock()
	f.event(unit.Event{Unit: name})
}

// recorder is a listener that keeps what it hears.
type recorder struct {
	ch chan string
}

func (r *recorder) MachineAdded(m Machine)   { r.ch <- "+" + m.Name }
func (r *recorder) MachineRemoved(m Machine) { r.ch <- "-" + m.Name }

func (r *recorder) want(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-r.ch:
		if got != want {
			t.Fatalf("listener heard %q, want %q", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("listener heard nothing, want %q", want)
	}
}

func newTestRegistry(t testing.TB, dir string, b *fakeBackend) (*Registry, *recorder) {
	t.Helper()
	reg := New(Config{StateDir: filepath.Join(dir, "machines"), Backend: b})
	if err := reg.Load(context.Background()); err != nil {
		t.Fatal(err)
	}
	rec := &recorder{ch: make(chan string, 64)}
	reg.Notify(rec)
	t.Cleanup(reg.Close)
	return reg, rec
}

func sleeper(t testing.TB) (*sys.Process, func()) {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	t.Cleanup(end)
	p, err := sys.OpenProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, end
}
