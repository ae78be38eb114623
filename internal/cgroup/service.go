package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
	"machined/internal/unit"
)

// The two parts of a spawner's unit, as systemd-nspawn@.service has them.
const supervisorGroup = "supervisor"

// rebootStatus is the spawner's exit status for "start me again"
// (RestartForceExitStatus= of systemd-nspawn@.service).
const rebootStatus = 133

// A spawner that reboots more often than this within startInterval is given up,
// as systemd.unit(5) does by default (StartLimitBurst=).
const (
	startBurst    = 5
	startInterval = 10 * time.Second
)

// service is one spawner and the unit that it runs in, from StartMachine until
// its cgroup is gone.
type service struct {
	b    *Backend
	name string
	dir  string

	started chan struct{} // closed when the start job has ended
	stopped chan struct{} // closed by the first stop
	gone    chan struct{} // closed when nothing is left

	saving sync.Mutex // held while the record is written, taken before mu

	mu       sync.Mutex
	rec      record
	startErr error
	// exit is the status that the spawner announced (EXIT_STATUS= of
	// sd_notify(3)); it is all we know of one that is not our child.
	exit    int
	settled bool
	stopSet bool
}

func (b *Backend) newService(name, dir, image string) *service {
	return &service{
		b: b, name: name, dir: dir, exit: -1, rec: record{Image: image},
		started: make(chan struct{}), stopped: make(chan struct{}), gone: make(chan struct{}),
	}
}

// StartMachine starts the spawner for an image and returns when it is ready.
func (b *Backend) StartMachine(ctx context.Context, image string, _ []unit.Property) (string, error) {
	name := unit.SpawnerName(image)
	dir, err := b.cfg.Tree.dir(name)
	if err != nil {
		return "", err
	}
	b.mu.Lock()
	s, running := b.services[name]
	if !running {
		if b.ctx.Err() != nil {
			b.mu.Unlock()
			return "", errors.New("machined is shutting down")
		}
		s = b.newService(name, dir, image)
		b.services[name] = s
		b.wg.Go(func() { s.run(nil) })
	}
	b.mu.Unlock()
	if running && s.isStopping() {
		return "", &unit.JobError{Unit: name, Result: "failed", Detail: "the machine is still shutting down"}
	}
	select {
	case <-s.started:
	case <-ctx.Done():
		return "", ctx.Err() // as with PID 1, the job goes on
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return name, s.startErr
}

func (s *service) isStopping() bool {
	select {
	case <-s.stopped:
		return true
	default:
		return false
	}
}

// stop begins to end the service.
func (s *service) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopSet {
		s.stopSet = true
		close(s.stopped)
	}
}

// settle ends the start job.
func (s *service) settle(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.settled {
		s.settled, s.startErr = true, err
		close(s.started)
	}
}

// run keeps the spawner running until it ends for good. adopted is a spawner
// that runs already.
func (s *service) run(adopted *sys.Process) {
	var err error
	var starts []time.Time
	for {
		var status int
		status, err = s.once(adopted)
		adopted = nil
		if s.b.ctx.Err() != nil {
			s.settle(errors.New("machined is shutting down"))
			return // the spawner goes on, and its record stays
		}
		s.sweep()
		s.cleanUp()
		if err != nil || status != rebootStatus || s.isStopping() {
			break
		}
		now := time.Now()
		starts = append(starts, now)
		for now.Sub(starts[0]) > startInterval {
			starts = starts[1:]
		}
		if len(starts) > startBurst {
			err = &unit.JobError{Unit: s.name, Result: "failed", Detail: "the machine rebooted too often"}
			break
		}
		s.b.cfg.Log.WithField("unit", s.name).Info("Machine reboots.")
	}
	if err == nil {
		err = s.failure("the machine ended before it was ready")
	}
	b := s.b
	b.mu.Lock()
	delete(b.services, s.name)
	b.mu.Unlock()
	_ = os.Remove(b.recordPath(s.name))
	close(s.gone)
	s.settle(err)
	b.emit(s.name)
}

// failure describes why a start failed, with what the spawner said last.
func (s *service) failure(why string) error {
	if tail, err := readTail(s.b.logPath(s.rec.Image), 2048); err == nil {
		lines := strings.Split(strings.TrimSpace(string(tail)), "\n")
		if last := strings.TrimRight(strings.TrimSpace(lines[len(lines)-1]), "."); last != "" {
			why += ": " + last
		}
	}
	return &startError{unit: s.name, why: why, log: s.b.logPath(s.rec.Image)}
}

// startError is a JobError whose advice fits a host without a journal.
type startError struct{ unit, why, log string }

func (e *startError) Error() string {
	return fmt.Sprintf("Job for %s failed because %s.\nSee %q for details.", e.unit, strings.TrimRight(e.why, "."), e.log)
}

func (e *startError) As(target any) bool {
	if t, ok := target.(**unit.JobError); ok {
		*t = &unit.JobError{Unit: e.unit, Result: "failed", Detail: e.why}
		return true
	}
	return false
}

// sweep ends what the spawner left behind and removes its cgroups.
func (s *service) sweep() {
	events := make(chan struct{}, 1)
	poke := func() {
		select {
		case events <- struct{}{}:
		default:
		}
	}
	if stop, err := s.b.watch.Add(filepath.Join(s.dir, "cgroup.events"), unix.IN_MODIFY, poke); err == nil {
		defer stop()
	}
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	for {
		if full, err := populated(s.dir); err != nil || !full {
			break
		}
		if err := kill(s.dir); err != nil {
			s.b.cfg.Log.WithError(err).WithField("unit", s.name).Warn("Leftover processes are not killed.")
		}
		select {
		case <-events:
			continue
		case <-deadline.C:
			s.b.cfg.Log.WithField("unit", s.name).Warn("Leftover processes do not end.")
		case <-s.b.ctx.Done():
		}
		break
	}
	if err := remove(s.dir); err != nil {
		s.b.cfg.Log.WithError(err).WithField("unit", s.name).Warn("Cgroup stays.")
	}
}

// cleanupTimeout bounds the removal of what a killed spawner has left.
const cleanupTimeout = 10 * time.Second

// cleanUp removes what a spawner leaves that was killed itself and so has told
// nothing at its end: mounts and links (ExecStopPost= of systemd-nspawn@.service).
func (s *service) cleanUp() {
	s.mu.Lock()
	told := s.exit >= 0
	s.mu.Unlock()
	if told {
		return
	}
	ctx, cancel := context.WithTimeout(s.b.ctx, cleanupTimeout)
	defer cancel()
	command := s.b.cfg.Spawner
	cmd := exec.CommandContext(ctx, command[0], append(append([]string{}, command[1:]...), "--cleanup", "--machine="+s.rec.Image)...)
	cmd.Env, cmd.Dir = s.b.cfg.Env, "/"
	if err := cmd.Run(); err != nil && ctx.Err() == nil {
		s.b.cfg.Log.WithError(err).WithField("unit", s.name).Debug("Nothing is cleaned up.")
	}
}

// once runs the spawner one time and returns its exit status.
func (s *service) once(adopted *sys.Process) (int, error) {
	proc := adopted
	wait := s.waitForeign
	if proc == nil {
		// Before the spawner is there, which may be ready at once.
		s.mu.Lock()
		s.rec.Ready, s.exit = false, -1
		s.mu.Unlock()
		cmd, err := s.spawn()
		if err != nil {
			return 0, err
		}
		// Until we wait, the child's number is its own, even if it has ended.
		if proc, err = sys.OpenProcess(cmd.Process.Pid); err != nil {
			_ = cmd.Wait()
			return 0, s.failure("the spawner ended at once")
		}
		wait = func(*sys.Process) int { return exitStatus(cmd.Wait()) }
	}
	defer proc.Close()
	s.mu.Lock()
	s.rec.PID, s.rec.StartTime = proc.PID(), proc.StartTime()
	s.mu.Unlock()
	if err := s.save(); err != nil {
		_ = kill(s.dir)
		wait(proc)
		return 0, err
	}
	return s.supervise(proc, wait)
}

// supervise waits for the end of a spawner, and sees to time-outs.
func (s *service) supervise(proc *sys.Process, wait func(*sys.Process) int) (int, error) {
	// The log is cut whenever it has grown; nothing else bounds it.
	if stop, err := s.b.watch.Add(s.b.logPath(s.rec.Image), unix.IN_MODIFY, func() { _ = trimLog(s.b.logPath(s.rec.Image)) }); err == nil {
		defer stop()
	}
	start := time.NewTimer(s.b.cfg.StartTimeout)
	defer start.Stop()
	startC, startedC, stoppedC := start.C, s.started, (<-chan struct{})(s.stopped)
	var killC <-chan time.Time
	var failed error
	for {
		select {
		case <-s.b.ctx.Done():
			return 0, nil
		case <-proc.Exited():
			status := wait(proc)
			if failed == nil && !s.isSettled() && status != rebootStatus {
				failed = s.failure(fmt.Sprintf("the spawner ended with exit status %d", status))
			}
			return status, failed
		case <-startedC:
			startC, startedC = nil, nil
		case <-startC:
			startC = nil
			if s.isSettled() {
				continue
			}
			failed = &startError{unit: s.name, why: fmt.Sprintf("the machine was not ready within %s", s.b.cfg.StartTimeout), log: s.b.logPath(s.rec.Image)}
			_ = kill(s.dir)
		case <-stoppedC:
			stoppedC = nil
			s.mu.Lock()
			s.rec.Stopping = true
			s.mu.Unlock()
			_ = s.save()
			_ = proc.Signal(unix.SIGTERM)
			_ = proc.Signal(unix.SIGCONT)
			killC = time.After(s.b.cfg.StopTimeout)
		case <-killC:
			s.b.cfg.Log.WithField("unit", s.name).Warn("Machine does not end; killing it.")
			_ = kill(s.dir)
		}
	}
}

// save writes the record as it is now. Whoever saves last has seen the last change.
func (s *service) save() error {
	s.saving.Lock()
	defer s.saving.Unlock()
	s.mu.Lock()
	rec := s.rec
	s.mu.Unlock()
	return s.b.saveRecord(s.name, rec)
}

func (s *service) isSettled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settled
}

// waitForeign is for a spawner that an earlier machined started: nobody tells
// us its status but the spawner itself, and that before its end.
func (s *service) waitForeign(*sys.Process) int {
	s.b.notify.barrier()
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(s.exit, 0)
}

func exitStatus(err error) int {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return exit.ExitCode()
}

// spawn starts the spawner in the supervisor's part of its unit.
func (s *service) spawn() (*exec.Cmd, error) {
	group := filepath.Join(s.dir, supervisorGroup)
	if err := s.b.cfg.Tree.make(group); err != nil {
		return nil, err
	}
	cgroupDir, err := os.OpenFile(group, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer cgroupDir.Close()
	logFile, err := os.OpenFile(s.b.logPath(s.rec.Image), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log of machine %q: %w", s.rec.Image, err)
	}
	defer logFile.Close()
	command := s.b.cfg.Spawner
	cmd := exec.Command(command[0], append(append([]string{}, command[1:]...),
		"--quiet", "--keep-unit", "--boot", "--link-journal=try-guest", "--network-veth", "-U",
		"--settings=override", "--machine="+s.rec.Image)...)
	cmd.Env = append(append([]string{}, s.b.cfg.Env...), "NOTIFY_SOCKET="+s.b.notify.path)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(cgroupDir.Fd())}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start spawner for machine %q: %w", s.rec.Image, err)
	}
	return cmd, nil
}

// notified handles one readiness message.
func (b *Backend) notified(pid int, fields map[string]string) {
	s := b.serviceOf(pid)
	if s == nil {
		return
	}
	s.mu.Lock()
	if text, ok := fields["STATUS"]; ok {
		s.rec.Status = text
	}
	if text, ok := fields["EXIT_STATUS"]; ok {
		var n int
		if _, err := fmt.Sscanf(text, "%d", &n); err == nil && n >= 0 && n < 256 {
			s.exit = n
		}
	}
	ready := fields["READY"] == "1"
	s.rec.Ready = s.rec.Ready || ready
	s.mu.Unlock()
	_ = s.save()
	if ready {
		s.settle(nil)
	}
}

// serviceOf returns the service that a process speaks for, nil if none: as its
// spawner, whose number is known also after its end, or from its cgroup.
func (b *Backend) serviceOf(pid int) *service {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.services {
		s.mu.Lock()
		is := s.rec.PID == pid
		s.mu.Unlock()
		if is {
			return s
		}
	}
	name, ok := unitOfSender(pid)
	if !ok {
		return nil
	}
	return b.services[name]
}

// Status is what the spawner of a unit last said about itself (STATUS= of
// sd_notify(3)); "" if it said nothing.
func (b *Backend) Status(name string) string {
	b.mu.Lock()
	s := b.services[name]
	b.mu.Unlock()
	if s == nil {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec.Status
}

// adopt takes up the spawners and scopes that are there.
func (b *Backend) adopt() {
	slice := filepath.Join(b.cfg.Tree.Root, unit.Slice)
	groups, _ := os.ReadDir(slice)
	for _, g := range groups {
		name := g.Name()
		if !g.IsDir() || !strings.HasPrefix(name, "machine-") || !strings.HasSuffix(name, ".scope") {
			continue
		}
		b.watchScope(name, filepath.Join(slice, name))
	}
	records, _ := os.ReadDir(filepath.Join(b.cfg.StateDir, "units"))
	for _, e := range records {
		name := e.Name()
		dir, err := b.cfg.Tree.dir(name)
		if err != nil {
			_ = os.Remove(b.recordPath(name))
			continue
		}
		rec, err := b.loadRecord(name)
		if err != nil {
			b.cfg.Log.WithError(err).WithField("unit", name).Warn("Record is unusable and is removed.")
		}
		s := b.newService(name, dir, rec.Image)
		s.rec = rec
		proc, perr := sys.OpenProcess(rec.PID)
		if err != nil || perr != nil || proc.StartTime() != rec.StartTime || !proc.Alive() {
			if proc != nil {
				proc.Close()
			}
			s.sweep()
			_ = os.Remove(b.recordPath(name))
			continue
		}
		if rec.Ready {
			s.settled = true
			close(s.started)
		}
		if rec.Stopping {
			s.stop()
		}
		b.services[name] = s
		b.wg.Go(func() { s.run(proc) })
	}
}
