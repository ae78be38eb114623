package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"machined/internal/sys"
	"machined/internal/unit"
)

// Config says where the backend works.
type Config struct {
	Tree     Tree
	StateDir string   // normally /run/machined: records, logs, notify socket
	UnitDir  string   // where Enable makes its links; normally /etc/systemd/system
	Spawner  []string // command of the spawner; options and --machine= are added
	Env      []string // environment of the spawner beside NOTIFY_SOCKET
	Log      logrus.FieldLogger

	StartTimeout time.Duration // until READY=1; 0: 2 min, as on the unit
	StopTimeout  time.Duration // until cgroup.kill; 0: 90 s
}

// Backend implements the registry's backend over the cgroup tree. It is safe
// for concurrent use.
type Backend struct {
	cfg    Config
	lock   *os.File // held while we live
	watch  *sys.FileWatcher
	notify *notifySocket
	wg     sync.WaitGroup
	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex
	event    func(unit.Event)
	scopes   map[string]func() // ends the watch of its cgroup.events
	services map[string]*service
}

// New makes the backend and takes up the spawners that an earlier one started.
func New(cfg Config) (*Backend, error) {
	if cfg.StartTimeout == 0 {
		cfg.StartTimeout = 2 * time.Minute
	}
	if cfg.StopTimeout == 0 {
		cfg.StopTimeout = 90 * time.Second
	}
	for _, dir := range []string{cfg.StateDir, filepath.Join(cfg.StateDir, "units"), filepath.Join(cfg.StateDir, "log")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make state directory: %w", err)
		}
	}
	lock, err := lockState(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	b := &Backend{cfg: cfg, lock: lock, scopes: map[string]func(){}, services: map[string]*service{}}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	if err := cfg.Tree.make(filepath.Join(cfg.Tree.Root, unit.Slice)); err != nil {
		_ = lock.Close()
		return nil, err
	}
	if b.watch, err = sys.NewFileWatcher(); err != nil {
		_ = lock.Close()
		return nil, err
	}
	if b.notify, err = listenNotify(filepath.Join(cfg.StateDir, "notify"), b.notified); err != nil {
		b.watch.Close()
		_ = lock.Close()
		return nil, err
	}
	b.adopt()
	return b, nil
}

// Close lets everything go; machines go on, and the next New takes them up.
func (b *Backend) Close() {
	b.cancel()
	b.notify.close()
	b.wg.Wait()
	b.watch.Close()
	// The kernel keeps it while it holds anything.
	_ = unix.Rmdir(filepath.Join(b.cfg.Tree.Root, unit.Slice))
	_ = b.lock.Close()
}

// ErrRunning says that another daemon works in the same state directory.
var ErrRunning = errors.New("another machined is running")

// lockState keeps two daemons from sharing a state directory: the second would
// take the readiness messages away from the first. The kernel drops the lock
// with its holder (flock(2)).
func lockState(dir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrRunning
		}
		return nil, fmt.Errorf("lock state directory %q: %w", dir, err)
	}
	return file, nil
}

// CgroupPrefix is "": machine.slice is at the root of the tree.
func (b *Backend) CgroupPrefix() string { return "" }

// CgroupOwner is who owns a cgroup, named as in proc_pid_cgroup(5).
func (b *Backend) CgroupOwner(path string) (uint32, error) {
	return sys.OwnerOf(filepath.Join(b.cfg.Tree.Root, path))
}

// Watch makes f hear of every unit that may have changed.
func (b *Backend) Watch(ctx context.Context, f func(unit.Event)) error {
	b.mu.Lock()
	b.event = f
	b.mu.Unlock()
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		b.event = nil
		b.mu.Unlock()
	})
	return nil
}

func (b *Backend) emit(name string) {
	b.mu.Lock()
	f := b.event
	b.mu.Unlock()
	if f != nil {
		f(unit.Event{Unit: name})
	}
}

// StartScope makes the cgroup of a scope and moves the leader into it. Only
// root reaches machined without PID 1, so that properties, all of them about
// controllers or the service manager, have no meaning here.
func (b *Backend) StartScope(_ context.Context, s unit.Scope) (unit.Job, error) {
	dir, err := b.cfg.Tree.dir(s.Name)
	if err != nil {
		return unit.Job{}, err
	}
	if busy, err := populated(dir); err != nil || busy {
		return unit.Job{}, fmt.Errorf("make scope %q: it exists: %w", s.Name, errors.Join(err, unix.EEXIST))
	}
	_ = remove(dir)
	if err := b.cfg.Tree.make(dir); err != nil {
		return unit.Job{}, err
	}
	if err := enter(dir, s.Leader); err != nil {
		_ = remove(dir)
		return unit.Job{}, err
	}
	b.watchScope(s.Name, dir)
	return unit.Finished(nil), nil
}

// watchScope removes a scope when it is empty.
func (b *Backend) watchScope(name, dir string) {
	look := func() {
		if full, err := populated(dir); err != nil || full {
			return
		}
		b.dropScope(name)
		_ = remove(dir)
		b.emit(name)
	}
	stop, err := b.watch.Add(filepath.Join(dir, "cgroup.events"), unix.IN_MODIFY, look)
	if err != nil {
		b.cfg.Log.WithError(err).WithField("unit", name).Warn("Scope is not watched.")
		return
	}
	b.mu.Lock()
	b.scopes[name] = stop
	b.mu.Unlock()
	look() // it may have emptied before the watch
}

func (b *Backend) dropScope(name string) {
	b.mu.Lock()
	stop := b.scopes[name]
	delete(b.scopes, name)
	b.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// Stop asks the processes of a unit to end, and ends them after StopTimeout.
func (b *Backend) Stop(_ context.Context, name string) error {
	b.mu.Lock()
	s := b.services[name]
	b.mu.Unlock()
	if s != nil {
		s.stop()
		return nil
	}
	dir, err := b.cfg.Tree.dir(name)
	if err != nil {
		return err
	}
	if full, err := populated(dir); err != nil || !full {
		return err
	}
	if err := signal(dir, unix.SIGTERM); err != nil {
		return fmt.Errorf("stop unit %q: %w", name, err)
	}
	_ = signal(dir, unix.SIGCONT)
	b.wg.Go(func() {
		timer := time.NewTimer(b.cfg.StopTimeout)
		defer timer.Stop()
		select {
		case <-timer.C:
			if full, _ := populated(dir); full {
				b.cfg.Log.WithField("unit", name).Warn("Unit does not end; killing it.")
				_ = kill(dir)
			}
		case <-b.ctx.Done():
		}
	})
	return nil
}

// Kill signals every process of a unit, or of one cgroup below it.
func (b *Backend) Kill(_ context.Context, name, subgroup string, sig unix.Signal) error {
	dir, err := b.cfg.Tree.sub(name, subgroup)
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("kill unit %q: %w", name, unix.ESRCH)
	}
	if sig == unix.SIGKILL {
		return kill(dir)
	}
	return signal(dir, sig)
}

// Active reports whether a unit has processes, or a spawner that is starting.
func (b *Backend) Active(_ context.Context, name string) (bool, error) {
	b.mu.Lock()
	_, ok := b.services[name]
	b.mu.Unlock()
	if ok {
		return true, nil
	}
	dir, err := b.cfg.Tree.dir(name)
	if err != nil {
		return false, nil //nolint:nilerr // a unit of that name can't be ours
	}
	full, err := populated(dir)
	if err == nil && !full && strings.HasSuffix(name, ".scope") {
		b.dropScope(name)
		_ = remove(dir)
	}
	return full, err
}

// Release removes a scope if it is empty; otherwise that happens when it gets
// empty.
func (b *Backend) Release(_ context.Context, name string) error {
	_, err := b.Active(context.Background(), name)
	return err
}
