package spawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/uidrange"
	"machined/internal/userdb"
	"machined/spawn/settings"
	"machined/spawn/stage"
)

// machine is one run of a machine, from the image to the payload's end.
type machine struct {
	opts    *Options
	io      Streams
	bus     Registrar
	notify  notifier
	signals chan os.Signal
	plan    stage.Plan
	c       *stage.Container
	exe     func() (*os.File, error) // this program for the stages
	id      [16]byte
	root    string // on the host, for people and machined
	netif   int
	cgroup  string // payload's, on the host
	unit    *ownUnit
	guard   func() *os.File // program for the payload's cgroup, nil where there is none
	failed  bool            // there was no payload: nothing may be left
	lent    string          // directory that says which interfaces of the host the machine has
	kept    kept
	temps   int      // temporary directories that are in the plan
	fresh   []string // directories that are to become the machine's root's
	// passphrase is one that has opened a partition of the image.
	passphrase []byte

	logMu       sync.Mutex
	registering sync.Mutex // held while machined and PID 1 look at the first process
	undos       []undoStep

	ends   chan struct{} // closed when the first process is a zombie
	reaped bool
	asked  bool // a signal has asked for the machine's end

	// What is stopped while nothing happens (rest.go).
	execs    *execServer
	reports  *reports
	restless atomic.Bool
	settled  sync.Once
	calm     time.Duration
	parent   *waiter            // nil: this program is the first process's parent
	status   syscall.WaitStatus // that the parent has told, when ends is closed
}

func (m *machine) say(format string, args ...any) {
	if !m.opts.Quiet {
		m.warn(format, args...)
	}
}

func (m *machine) warn(format string, args ...any) {
	m.logMu.Lock()
	defer m.logMu.Unlock()
	_, _ = fmt.Fprintf(m.io.Log, format+"\n", args...)
}

// outcome is how a payload ended.
type outcome struct {
	code   int
	reboot bool
}

// ending are the signals that end a machine.
var ending = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT}

// Interrupted is the error when a signal ended the program while it was setting
// the machine up. Everything has been taken down again.
type Interrupted struct{ Signal os.Signal }

func (e *Interrupted) Error() string {
	return "interrupted by " + e.Signal.String() + " before the machine ran"
}

// interruptible is a context that ends with the first signal, until stop is called.
func (m *machine) interruptible(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stopped, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case sig := <-m.signals:
			cancel(&Interrupted{sig})
		case <-stopped:
		}
	}()
	return ctx, sync.OnceFunc(func() { close(stopped); <-done })
}

// Run boots the machine or runs its command, until it ends for good. It returns
// the exit status of the whole program. Options have been validated. earlier is what
// an earlier run of the machine has left for this one, or nil.
func Run(ctx context.Context, opts *Options, streams Streams, bus Registrar, earlier *Earlier) (int, error) {
	signals := make(chan os.Signal, 16)
	// For good: the program ends with the machine, and taking this back takes time.
	signal.Notify(signals, ending...)
	var passphrase []byte // nobody is asked again when the machine reboots
	var undos []undoStep
	var has kept
	if earlier != nil {
		undos, has = earlier.undos, earlier.kept
	}
	// Each run of a machine takes its image anew, after a reboot too.
	for {
		m := &machine{
			opts: opts, io: streams, bus: bus, notify: newNotifier(), signals: signals,
			passphrase: passphrase, undos: undos, kept: has,
		}
		code, again, err := m.once(ctx)
		if err != nil || !again {
			return code, err
		}
		passphrase, undos, has = m.passphrase, m.undos, m.kept
	}
}

// exitStatus is that of the whole program, unless the machine is to be started again by us.
func (m *machine) exitStatus(result outcome) (code int, final bool) {
	switch {
	case !result.reboot:
		return result.code, true
	case m.opts.KeepUnit:
		m.notify.send("EXIT_STATUS=" + strconv.Itoa(ExitReboot))
		return ExitReboot, true
	}
	return 0, false
}

// once is one run of the machine. again is whether there is to be another; otherwise
// code is the exit status of the whole program.
func (m *machine) once(ctx context.Context) (code int, again bool, err error) {
	defer func() {
		m.failed = err != nil
		m.cleanUp(again)
	}()
	result, err := m.fromImageToEnd(ctx)
	if err != nil {
		return 1, false, err
	}
	code, final := m.exitStatus(result)
	return code, !final, nil
}

func (m *machine) fromImageToEnd(ctx context.Context) (result outcome, err error) {
	ctx, ready := m.interruptible(ctx)
	defer func() {
		ready()
		if i := (*Interrupted)(nil); err != nil && errors.As(context.Cause(ctx), &i) {
			err = i
		}
	}()
	m.exe = stage.SealedSelf()
	m.undoOurs(m.closeExe)
	if err := m.makePlan(); err != nil {
		return outcome{}, err
	}
	if err := m.attachImage(ctx); err != nil {
		return outcome{}, err
	}
	if err := m.pickUsers(); err != nil {
		return outcome{}, err
	}
	if err := m.planBindUsers(userdb.Host); err != nil {
		return outcome{}, err
	}
	m.identity()
	m.followHost()
	if m.plan.Root.Path != "" { // the other kinds are looked at when they are mounted
		if err := m.linkJournal(); err != nil {
			return outcome{}, err
		}
	}
	if err := m.hostDirs(); err != nil {
		return outcome{}, err
	}
	if err := m.forwardJournal(); err != nil {
		return outcome{}, err
	}
	m.say("Spawning container %s on %s.", m.opts.Machine, m.root)
	if m.plan.Console.PTY && m.opts.Console == "interactive" {
		m.say("Press ^] three times within 1s to kill container.")
	}
	if err := m.start(ctx); err != nil {
		return outcome{}, err
	}
	return m.supervise(ctx, ready)
}

// start builds the tree and makes the first process.
func (m *machine) start(ctx context.Context) (err error) {
	o := stage.IO{Stdin: m.io.Stdin, Stdout: m.io.Stdout, Stderr: m.io.Stderr, Inherit: m.io.Inherit, Exe: m.exe, Rooted: m.rooted}
	if o.Export, err = m.export(); err != nil {
		return err
	}
	if m.opts.NetnsPath != "" {
		if o.NetNS, err = netnsFile(m.opts.NetnsPath); err != nil {
			return err
		}
		m.undoOurs(func() { _ = o.NetNS.Close() })
	}
	m.loadGuard()
	if err := m.divideUnit(); err != nil {
		return err
	}
	if m.unit != nil {
		defer m.unit.payload.Close()
		o.Cgroup = m.unit.payload
	}
	shift := func(rootfd int, base uint32) error { return uidrange.Shift(ctx, rootfd, base) }
	m.c, err = stage.Start(&m.plan, o, shift, m.warn)
	return err
}

// supervise leads the first process through its set-up, and waits for its end.
// ready is called when signals are the payload's.
func (m *machine) supervise(ctx context.Context, ready func()) (outcome, error) {
	m.follow()
	// Ends the handshake, wherever it is. But a process that dies while PID 1
	// moves it into its scope can leave a scope that never ends.
	unwatch := context.AfterFunc(ctx, func() {
		m.registering.Lock()
		defer m.registering.Unlock()
		_ = unix.PidfdSendSignal(m.c.PIDFD, unix.SIGKILL, nil, 0)
	})
	defer unwatch()
	if err := m.setUp(ctx); err != nil {
		return outcome{}, err
	}
	ready()
	stop := make(chan struct{})
	defer close(stop)
	m.listenExec()
	m.announce(stop)
	m.calm = settleAfter
	return m.stand(ctx, m.startConsole(nil)), nil
}

// follow notices the end of the first process, which is reaped by reap alone: until
// then its exit status is there for whoever asks, also for another program.
func (m *machine) follow() {
	m.ends = make(chan struct{})
	go func() {
		for errors.Is(unix.Waitid(unix.P_PIDFD, m.c.PIDFD, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
		}
		close(m.ends)
	}()
	m.undoOurs(m.c.Close)
	m.undoOurs(func() {
		if !m.reaped {
			_ = unix.PidfdSendSignal(m.c.PIDFD, unix.SIGKILL, nil, 0)
			m.reap()
		}
	})
}

func (m *machine) reap() (ws syscall.WaitStatus) {
	if m.parent != nil {
		return m.status
	}
	for {
		_, err := syscall.Wait4(m.c.PID, &ws, 0, nil)
		if err == nil || !errors.Is(err, syscall.EINTR) {
			m.reaped = true
			return ws
		}
	}
}

// stand stands by the machine until it ends.
func (m *machine) stand(ctx context.Context, console *console) outcome {
	calm := time.NewTimer(m.calm)
	defer calm.Stop()
	m.calm = max(m.calm, settleAfter)
	for {
		select {
		case <-calm.C:
			if m.asked {
				break // it won't be long
			}
			if m.rest(&console) {
				calm.Reset(m.calm)
			}
		case <-m.ends:
			ws := m.reap()
			console.finish()
			return m.ended(ws)
		case <-console.killed:
			console.killed = nil
			_ = unix.PidfdSendSignal(m.c.PIDFD, unix.SIGKILL, nil, 0)
		case <-ctx.Done():
			ctx = context.Background()
			_ = unix.PidfdSendSignal(m.c.PIDFD, unix.SIGKILL, nil, 0)
		case <-m.bus.StopRequests():
			m.notify.send("STOPPING=1", "STATUS=Container being shut down.")
			sig := m.opts.KillSignal
			if sig == 0 {
				m.say("Container termination requested. Exiting.")
				sig = unix.SIGKILL
			} else {
				m.say("Container termination requested. Attempting to halt container.")
			}
			_ = unix.PidfdSendSignal(m.c.PIDFD, sig, nil, 0)
		case <-m.signals:
			sig := m.opts.KillSignal
			if m.asked || sig == 0 {
				sig = unix.SIGKILL
			}
			if !m.asked {
				m.notify.send("STOPPING=1", "STATUS=Container being shut down.")
			}
			if sig != unix.SIGKILL {
				m.say("Trying to halt container. Send SIGTERM again to trigger immediate termination.")
			}
			m.asked = true
			_ = unix.PidfdSendSignal(m.c.PIDFD, sig, nil, 0)
		}
	}
}

// setUp carries out the handshake with the stage. On error the caller kills.
func (m *machine) setUp(ctx context.Context) error {
	if err := m.writeMaps(); err != nil {
		return err
	}
	// Links take long, and a stage needs them only if a setting may name one.
	plug := m.plugNetwork
	if len(m.plan.Sysctls) > 0 {
		if err := plug(); err != nil {
			return err
		}
		plug = func() error { return nil }
	}
	if err := m.c.Chan.Send(stage.StepMapped, &m.plan); err != nil {
		return fmt.Errorf("start stage: %w", err)
	}
	// Registering needs nothing of the stage, nor the stage of it.
	registered := make(chan error, 1)
	go func() {
		if err := plug(); err != nil {
			registered <- err
			return
		}
		m.registering.Lock()
		defer m.registering.Unlock()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), registerPatience)
		defer cancel()
		err := m.register(ctx)
		if err == nil {
			m.watchLent(ctx)
		}
		registered <- err
	}()
	err := m.c.Chan.Wait(stage.StepMounted)
	if err == nil {
		err = m.c.Unpin()
	}
	if regErr := <-registered; err == nil {
		err = regErr
	}
	if err != nil {
		return stageError(err)
	}
	if err := m.c.Chan.Send(stage.StepCgroup, nil); err != nil {
		return fmt.Errorf("go on with stage: %w", err)
	}
	if err := m.c.Chan.Wait(stage.StepReady); err != nil {
		return stageError(err)
	}
	m.payloadNotify(m.c.Notify, m.c.PID)
	if err := m.c.Chan.Send(stage.StepExecute, nil); err != nil {
		return fmt.Errorf("execute payload: %w", err)
	}
	// The end of the channel is the execution.
	if err := m.c.Chan.Wait(""); !errors.Is(err, stage.ErrExecuted) {
		return stageError(err)
	}
	m.closeExe() // perhaps a copy in memory, which only the stages needed
	return nil
}

func stageError(err error) error {
	if errors.Is(err, stage.ErrExecuted) {
		return errors.New("first process of the machine died while it was set up")
	}
	return err
}

// writeMaps gives the user namespace its map (user_namespaces(7)).
func (m *machine) writeMaps() error {
	u := m.plan.Userns
	if u == nil {
		return nil
	}
	users, groups := u.Maps()
	for _, file := range []struct {
		name string
		maps []stage.Mapping
	}{{"uid_map", users}, {"gid_map", groups}} {
		var lines strings.Builder
		for _, l := range file.maps {
			fmt.Fprintf(&lines, "%d %d %d\n", l.Inside, l.Outside, l.Count)
		}
		if err := writeFile("/proc/"+strconv.Itoa(m.c.PID)+"/"+file.name, lines.String()); err != nil {
			return fmt.Errorf("write %s: %w", file.name, err)
		}
	}
	return nil
}

// pickUsers chooses the machine's range of host UIDs and holds it.
func (m *machine) pickUsers() error {
	o := m.opts
	var st unix.Stat_t
	if m.plan.Root.Path != "" {
		if err := unix.Stat(m.plan.Root.Path, &st); err != nil {
			return &os.PathError{Op: "stat", Path: m.plan.Root.Path, Err: err}
		}
	}
	u := &stage.Userns{Count: uidrange.Size}
	switch o.Users.Mode {
	case settings.UserNone:
		return nil
	case settings.UserIdentity:
	case settings.UserFixed:
		u.Base, u.Count = o.Users.Base, o.Users.Count
	case settings.UserRoot:
		if st.Uid&0xffff0000 != st.Gid&0xffff0000 {
			return fmt.Errorf("UID and GID base of %s don't match.", m.root)
		}
		u.Base = st.Uid & 0xffff0000
	case settings.UserPick:
		if m.kept.Count == 0 {
			r, err := uidrange.Pick(st.Uid, o.Machine, o.ranges())
			if err != nil {
				return fmt.Errorf("Failed to pick suitable UID/GID range: %w", err)
			}
			m.oweLocks(r.Files())
			m.keep()
			m.kept.Base, m.kept.Count = r.Base, r.Count
		}
		u.Base, u.Count = m.kept.Base, m.kept.Count
		m.say("Selected user namespace base %d and range %d.", u.Base, u.Count)
	}
	m.plan.Userns = u
	for _, dir := range m.fresh {
		if u.Base != 0 {
			if err := os.Chown(dir, int(u.Base), int(u.Base)); err != nil {
				return err
			}
		}
	}
	return nil
}

// identity decides the machine's UUID: the image's own counts.
func (m *machine) identity() {
	id, ok := m.imageID()
	if !ok {
		id = m.opts.UUID
	}
	if id == [16]byte{} {
		id = m.drawnID()
	}
	m.id, m.plan.UUID = id, dashed(id)
}

// hostDirs makes the directory through which mounts are handed in.
func (m *machine) hostDirs() error {
	dir := m.plan.Propagate
	if dir == "" { // machined is not told: nobody will hand anything in
		return nil
	}
	parent := filepath.Dir(dir)
	if err := errors.Join(os.MkdirAll(parent, 0o700), os.Chmod(parent, 0o700)); err != nil {
		return err
	}
	// In the machine it is nobody's, so that anybody has to be let through. On the
	// host the directory above lets nobody.
	if err := os.Mkdir(dir, 0o600); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	m.owe(chore{Kind: choreRemove, Path: dir})
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	return nil
}

// export makes the directory of the host in which the machine shows its sockets.
func (m *machine) export() (*stage.Export, error) {
	var base uint32
	if u := m.plan.Userns; u != nil {
		base = u.Base
	}
	e, err := stage.NewExport(filepath.Join(UnixExportDir, m.opts.Machine), base)
	if err == nil {
		m.owe(chore{Kind: choreExport, Path: filepath.Join(UnixExportDir, m.opts.Machine)}, e.Lock())
		m.undoOurs(e.CloseTree)
	}
	return e, err
}

// announce tells the service manager that the machine is there.
func (m *machine) announce(stop <-chan struct{}) {
	lines := []string{"STATUS=Container running.", "X_NSPAWN_LEADER_PID=" + strconv.Itoa(m.c.PID)}
	if !m.opts.NotifyReady {
		lines = append(lines, "READY=1")
	}
	m.notify.send(lines...)
	m.notify.watchdog(stop)
}

// ended reads the payload's end. An init ends by reboot(2), which the kernel
// turns into a signal (pid_namespaces(7)).
func (m *machine) ended(ws syscall.WaitStatus) outcome {
	name := m.opts.Machine
	m.notify.send("STOPPING=1", "STATUS=Terminating...")
	switch {
	case ws.Exited() && ws.ExitStatus() == 0:
		m.say("Container %s exited successfully.", name)
		return outcome{}
	case ws.Exited():
		code := ws.ExitStatus()
		m.say("Container %s failed with error code %d.", name, code)
		if code == ExitReboot {
			code = 1
		}
		return outcome{code: code}
	case ws.Signal() == syscall.SIGINT:
		m.say("Container %s has been shut down.", name)
		return outcome{}
	case ws.Signal() == syscall.SIGHUP:
		m.say("Container %s is being rebooted.", name)
		return outcome{reboot: true}
	}
	m.warn("Container %s terminated by signal %s.", name, signalName(ws.Signal()))
	return outcome{code: 1}
}

func signalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" {
		return strings.TrimPrefix(name, "SIG")
	}
	return strconv.Itoa(int(sig))
}

func (m *machine) closeExe() {
	if f, err := m.exe(); err == nil {
		_ = f.Close()
	}
}
