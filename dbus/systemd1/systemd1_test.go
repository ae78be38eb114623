package systemd1

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/sirupsen/logrus"

	"machined/dbus"
	"machined/internal/sys"
	"machined/internal/testbus"
	"machined/internal/unit"
)

// fakePID1 is a service manager that knows transient units by name.
type fakePID1 struct {
	conn    *godbus.Conn
	noFDs   bool // systemd before 253: no PIDFDs property
	result  string
	waiting atomic.Int32
	most    atomic.Int32

	mu    sync.Mutex
	props []string
	stops []string
	calls int // of StartTransientUnit
	// left is how often a scope of that name is still there; ends says that it
	// goes away after having been asked for.
	left int
	ends bool
}

func (f *fakePID1) iface() *dbus.Interface {
	return &dbus.Interface{Name: managerIface, Methods: []dbus.Method{
		{Name: "Subscribe", Handler: func(context.Context, *dbus.Call, any) ([]any, error) { return nil, nil }},
		{Name: "StartTransientUnit", In: dbus.Args("s name", "s mode", "a(sv) properties", "a(sa(sv)) aux"), Out: dbus.Args("o job"), Handler: f.startTransientUnit},
		{Name: "StopUnit", In: dbus.Args("s name", "s mode"), Out: dbus.Args("o job"), Handler: f.stopUnit},
		{Name: "KillUnit", In: dbus.Args("s name", "s whom", "i signal"), Handler: f.killUnit},
	}}
}

func (f *fakePID1) startTransientUnit(_ context.Context, c *dbus.Call, _ any) ([]any, error) {
	f.mu.Lock()
	f.calls++
	left := f.left
	f.left--
	f.mu.Unlock()
	if left > 0 {
		if f.ends {
			time.AfterFunc(20*time.Millisecond, func() {
				_ = f.conn.Emit(managerPath, managerIface+".UnitRemoved", c.String(0), pathOfUnit(c.String(0)))
			})
		}
		return nil, dbus.Errorf(unitExists, "Unit %s was already loaded or has a fragment file.", c.String(0))
	}
	var names []string
	props, _ := c.Args[2].([][]any)
	for _, p := range props {
		name, _ := p[0].(string)
		if name == "PIDFDs" && f.noFDs || name == "Bogus" {
			return nil, dbus.Errorf(propReadOnly, "Cannot set property %s, or unknown property.", name)
		}
		names = append(names, name)
	}
	f.mu.Lock()
	f.props = names
	f.mu.Unlock()
	const job = godbus.ObjectPath("/org/freedesktop/systemd1/job/7")
	// The signal overtakes the reply.
	err := f.conn.Emit(managerPath, managerIface+".JobRemoved", uint32(7), job, c.String(0), f.result)
	return []any{job}, err
}

func (f *fakePID1) stopUnit(_ context.Context, c *dbus.Call, _ any) ([]any, error) {
	if c.String(0) == "gone.scope" {
		return nil, dbus.Errorf(noSuchUnit, "Unit gone.scope not loaded.")
	}
	f.mu.Lock()
	f.stops = append(f.stops, c.String(0))
	f.mu.Unlock()
	return []any{godbus.ObjectPath("/org/freedesktop/systemd1/job/8")}, nil
}

func (f *fakePID1) killUnit(context.Context, *dbus.Call, any) ([]any, error) {
	n := f.waiting.Add(1)
	defer f.waiting.Add(-1)
	for {
		most := f.most.Load()
		if n <= most || f.most.CompareAndSwap(most, n) {
			break
		}
	}
	<-time.After(time.Millisecond) // long enough that calls overlap
	return nil, nil
}

func start(t *testing.T, f *fakePID1) *Backend {
	t.Helper()
	bus := testbus.Start(t)
	conn, err := dbus.Connect(t.Context(), bus.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	f.conn = conn
	tree := dbus.TreeOf(conn)
	tree.Add(managerPath, nil, f.iface())
	if err := tree.Watch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName(busName, godbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetLevel(logrus.PanicLevel)
	b, err := New(t.Context(), Config{Log: log, Dial: func(ctx context.Context) (*godbus.Conn, error) { return dbus.Connect(ctx, bus.Address) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func scope(t *testing.T) unit.Scope {
	t.Helper()
	p, err := sys.OpenProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return unit.Scope{Name: "machine-x.scope", Description: "Container x", Slice: unit.Slice, Leader: p}
}

// TestScopeOfLastRun has a machine start again before PID 1 has forgotten its
// last scope.
func TestScopeOfLastRun(t *testing.T) {
	f := &fakePID1{result: "done", left: 1, ends: true}
	b := start(t, f)
	job, err := b.StartScope(t.Context(), scope(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := <-job.Done; err != nil {
		t.Error(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls != 2 {
		t.Errorf("got %d calls, want 2", f.calls)
	}
}

// TestScopeTaken has a scope of the name that stays.
func TestScopeTaken(t *testing.T) {
	b := start(t, &fakePID1{result: "done", left: 2})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := b.StartScope(ctx, scope(t)); !isError(err, unitExists) {
		t.Errorf("got %v, want %s", err, unitExists)
	}
}

// TestPIDFDsAreTriedOnce has a PID 1 without them asked for them once only, but
// not given up for a property of the caller's that is refused.
func TestPIDFDsAreTriedOnce(t *testing.T) {
	for _, tc := range []struct {
		name  string
		noFDs bool
		calls []int // after a refused property, and after each of two scopes
	}{
		{"before 253", true, []int{2, 4, 5}},
		{"newer", false, []int{2, 3, 4}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := &fakePID1{noFDs: tc.noFDs, result: "done"}
			b := start(t, f)
			for i, want := range tc.calls {
				s := scope(t)
				if i == 0 {
					s.Properties = []unit.Property{{Name: "Bogus", Value: "x"}}
				}
				_, err := b.StartScope(t.Context(), s)
				if refused := err != nil; refused != (i == 0) {
					t.Fatalf("scope %d: %v", i, err)
				}
				f.mu.Lock()
				if f.calls != want {
					t.Errorf("after scope %d: got %d calls, want %d", i, f.calls, want)
				}
				f.mu.Unlock()
			}
		})
	}
}

func TestStartScope(t *testing.T) {
	for _, tc := range []struct {
		name, result, property string
		noFDs                  bool
		extra                  []unit.Property
		refused                bool
	}{
		{name: "pidfd", result: "done", property: "PIDFDs"},
		{name: "before 253", result: "done", property: "PIDs", noFDs: true},
		{name: "job fails", result: "failed", property: "PIDFDs"},
		{name: "property refused", extra: []unit.Property{{Name: "Bogus", Value: "x"}}, refused: true},
		{name: "property without a name", extra: []unit.Property{{Value: "x"}}, refused: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := &fakePID1{noFDs: tc.noFDs, result: tc.result}
			b := start(t, f)
			s := scope(t)
			s.Properties = tc.extra
			job, err := b.StartScope(t.Context(), s)
			if tc.refused {
				if err == nil {
					t.Fatal("got no error")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			err = <-job.Done
			var je *unit.JobError
			if failed := errors.As(err, &je); failed != (tc.result != "done") {
				t.Errorf("job: got %v, want result %q", err, tc.result)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if !slices.Contains(f.props, tc.property) {
				t.Errorf("properties %v lack %s", f.props, tc.property)
			}
		})
	}
}

func TestStopUnknownUnit(t *testing.T) {
	f := &fakePID1{}
	b := start(t, f)
	if err := b.Stop(t.Context(), "gone.scope"); err != nil {
		t.Errorf("stop of a unit that is gone: %v", err)
	}
	err := b.Stop(t.Context(), "machine-x.scope")
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil || len(f.stops) != 1 {
		t.Errorf("stop: %v, PID 1 heard %v", err, f.stops)
	}
}

// TestManyCalls asks about more units at once than the bus lets a connection
// wait for.
func TestManyCalls(t *testing.T) {
	f := &fakePID1{}
	b := start(t, f)
	var wg sync.WaitGroup
	var failed atomic.Int32
	for range 500 {
		wg.Go(func() {
			if err := b.Kill(t.Context(), "machine-x.scope", "", 15); err != nil {
				failed.Add(1)
			}
		})
	}
	wg.Wait()
	if failed.Load() > 0 || f.most.Load() > maxCalls {
		t.Errorf("%d calls failed, %d at once, want at most %d", failed.Load(), f.most.Load(), maxCalls)
	}
}

func TestUnitPaths(t *testing.T) {
	for _, name := range []string{"machine-x.scope", `machine-a\x2db.scope`, "7up.service", "systemd-nspawn@deb.service"} {
		path := pathOfUnit(name)
		if got, ok := unitOfPath(path); !ok || got != name || !path.IsValid() {
			t.Errorf("unitOfPath(%q) = %q, %v, want %q", path, got, ok, name)
		}
	}
	for _, path := range []godbus.ObjectPath{"/other", unitPrefix + "a_", unitPrefix + "a_zz"} {
		if got, ok := unitOfPath(path); ok {
			t.Errorf("unitOfPath(%q) = %q, want none", path, got)
		}
	}
}
