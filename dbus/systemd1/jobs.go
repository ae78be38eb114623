package systemd1

import (
	"context"
	"errors"
	"fmt"

	godbus "github.com/godbus/dbus/v5"

	"machined/internal/unit"
)

// property is one element of a(sv).
type property struct {
	Name  string
	Value godbus.Variant
}

// aux is one element of a(sa(sv)), the auxiliary units that nobody uses.
type aux struct {
	Name       string
	Properties []property
}

// tasksMax is the limit of processes and threads of a machine, as on
// systemd-nspawn@.service.
const tasksMax = uint64(16384)

// StartScope asks for a transient scope around the leader. It takes no reference
// on it (AddRef=): PID 1 needs a match rule for each, runs out of them at 512, and
// then keeps dead scopes for ever, whose names are taken.
func (b *Backend) StartScope(ctx context.Context, s unit.Scope) (unit.Job, error) {
	describe := func(process property) ([]property, error) {
		props := []property{
			{"Slice", godbus.MakeVariant(s.Slice)},
			{"Description", godbus.MakeVariant(s.Description)},
			process,
			{"Delegate", godbus.MakeVariant(true)},
			{"CollectMode", godbus.MakeVariant("inactive-or-failed")},
			{"TasksMax", godbus.MakeVariant(tasksMax)},
		}
		if s.UID != 0 {
			props = append(props, property{"User", godbus.MakeVariant(fmt.Sprint(s.UID))})
		}
		extra, err := variants(s.Properties)
		return append(props, extra...), err
	}
	start := func(process property) (unit.Job, error) {
		props, err := describe(process)
		if err != nil {
			return unit.Job{}, err
		}
		var job unit.Job
		twice, err := b.insist(ctx, func() (err error) {
			job, err = b.startJob(ctx, s.Name, "StartTransientUnit", s.Name, "fail", props, []aux{})
			return err
		})
		if twice && isError(err, unitExists) && b.holds(ctx, s) {
			return unit.Finished(nil), nil // PID 1 had done it before it went
		}
		if isError(err, unitExists) && b.outlast(ctx, s.Name) {
			job, err = b.startJob(ctx, s.Name, "StartTransientUnit", s.Name, "fail", props, []aux{})
		}
		return job, err
	}
	if !b.numbersOnly.Load() {
		job, err := start(property{"PIDFDs", godbus.MakeVariant([]godbus.UnixFD{godbus.UnixFD(s.Leader.FD())})})
		if !isError(err, unknownProp, propReadOnly) {
			return job, err
		}
	}
	// systemd before 253 takes the number only. That it was this property that was
	// refused, and none of the caller's, shows when it goes without.
	job, err := start(property{"PIDs", godbus.MakeVariant([]uint32{uint32(s.Leader.PID())})})
	if err == nil {
		b.numbersOnly.Store(true)
	}
	return job, err
}

// variants takes the opaque properties of a caller for what they are here.
func variants(in []unit.Property) ([]property, error) {
	out := make([]property, 0, len(in))
	for _, p := range in {
		v, ok := p.Value.(godbus.Variant)
		if !ok {
			v = godbus.MakeVariant(p.Value)
		}
		if p.Name == "" {
			return nil, errors.New("property of a scope without a name")
		}
		out = append(out, property{p.Name, v})
	}
	return out, nil
}

// startJob calls a method that returns a job, and follows that job.
func (b *Backend) startJob(ctx context.Context, name, method string, args ...any) (unit.Job, error) {
	b.mu.Lock()
	b.inCall++
	b.mu.Unlock()
	var path godbus.ObjectPath
	err := b.call(ctx, method, args...).Store(&path)

	b.mu.Lock()
	defer b.mu.Unlock()
	job := unit.Job{ID: string(path)}
	if err == nil {
		done := make(chan error, 1)
		job.Done = done
		if result, ended := b.early[path]; ended {
			done <- jobError(name, result)
			close(done)
		} else {
			b.jobs[path] = &pendingJob{unit: name, done: done}
		}
	}
	if b.inCall--; b.inCall == 0 {
		clear(b.early)
	}
	return job, err
}

func jobError(name, result string) error {
	if result == "done" {
		return nil
	}
	return &unit.JobError{Unit: name, Result: result}
}

func (b *Backend) jobEnded(path godbus.ObjectPath, name, result string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	job, ok := b.jobs[path]
	if !ok {
		if b.inCall > 0 {
			b.early[path] = result
		}
		return
	}
	delete(b.jobs, path)
	job.done <- jobError(name, result)
	close(job.done)
}

func (b *Backend) failJobs(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for path, job := range b.jobs {
		delete(b.jobs, path)
		job.done <- err
		close(job.done)
	}
}

// recheckJobs settles jobs whose end we may have missed: those that PID 1 does
// not have any more ended well if their unit is active.
func (b *Backend) recheckJobs() {
	b.mu.Lock()
	jobs := make(map[godbus.ObjectPath]string, len(b.jobs))
	for path, job := range b.jobs {
		jobs[path] = job.unit
	}
	b.mu.Unlock()
	for path, name := range jobs {
		var v godbus.Variant
		err := b.object(context.Background(), path, propertiesGet, busName+".Job", "State").Store(&v)
		if !isError(err, unknownObject, busName+".NoSuchJob") {
			continue
		}
		result := "failed"
		if active, err := b.Active(context.Background(), name); err == nil && active {
			result = "done"
		}
		b.jobEnded(path, name, result)
	}
}

// StartMachine starts the spawner's unit for an image and waits for its job.
func (b *Backend) StartMachine(ctx context.Context, image string, properties []unit.Property) (string, error) {
	name := unit.SpawnerName(image)
	if len(properties) > 0 {
		props, err := variants(properties)
		if err != nil {
			return "", err
		}
		if err := b.call(ctx, "SetUnitProperties", name, true, props).Err; err != nil {
			return "", wrap("set properties of unit", name, err)
		}
	}
	var job unit.Job
	_, err := b.insist(ctx, func() (err error) {
		job, err = b.startJob(ctx, name, "StartUnit", name, "fail")
		return err
	})
	if err != nil {
		return "", wrap("start unit", name, err)
	}
	select {
	case err := <-job.Done:
		return name, err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// change is one element of a(sss).
type change struct{ Type, File, Source string }

// Enable enables or disables the spawner's units for images, and
// machines.target, without which enabled machines would not start.
func (b *Backend) Enable(ctx context.Context, images []string, on bool) ([]unit.Change, error) {
	names := make([]string, 0, len(images)+1)
	for _, image := range images {
		names = append(names, unit.SpawnerName(image))
	}
	var changes []change
	var err error
	if on {
		var carries bool
		err = b.call(ctx, "EnableUnitFiles", append(names, "machines.target"), false, false).Store(&carries, &changes)
	} else {
		err = b.call(ctx, "DisableUnitFiles", names, false).Store(&changes)
	}
	if err != nil {
		return nil, fmt.Errorf("change unit files of %q: %w", names, err)
	}
	if err := b.call(ctx, "Reload").Err; err != nil {
		return nil, fmt.Errorf("reload PID 1: %w", err)
	}
	out := make([]unit.Change, len(changes))
	for i, c := range changes {
		out[i] = unit.Change(c)
	}
	return out, nil
}
