package spawn

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"machined/internal/pack"
	"machined/internal/ptyfwd"
	"machined/spawn/stage"
)

// A machine that runs needs a process to be there, and hardly ever one that does
// something. So this program puts a small one in its place when nothing has happened
// for a while (wait/machine-wait.c): the same process with the same descriptors, and
// what only this program understands in a file in memory. When any descriptor, a signal
// or the machine's end wants something, that one starts this program again, as a helper
// that ends as soon as nothing happens (wake.go).
//
// Where something can't be handed over (ports, a journal's receiver), this program
// stays, and gives back what memory it can.

// waitProgram is the small program, in the place of this one's installation.
var waitProgram = sync.OnceValue(func() string {
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	return filepath.Join(filepath.Dir(filepath.Dir(self)), "lib/machined/machine-wait")
})

// Environment variables that it reads and sets.
const (
	waitVariable  = "MACHINED_WAIT"
	nameVariable  = "MACHINED_NAME"
	wakeVariable  = "MACHINED_WAKE"  // descriptors of the state and of the socket to the small program
	againVariable = "MACHINED_AGAIN" // of the state, whose machine is to be started again
)

// maxCalm bounds how much longer the next rest waits each time that one is soon over.
const maxCalm = time.Minute

// restState is what the program needs to go on.
type restState struct {
	Env     []string
	Name    string // of the process
	Options restOptions
	Plan    stage.Plan // what further programs in the machine need
	PID     int
	// Descriptors, -1 for none.
	PIDFD, Master, Notify, Exec, Stop int
	Chores                            []chore
	Kept                              kept
	Console                           consoleState
	Calm                              time.Duration
	Since                             int64 // time.Time.UnixNano
	Asked                             bool  // a signal has asked for the machine's end
	First                             bool  // for the first helper
}

// restOptions are those that count after the start.
type restOptions struct {
	Machine, Console, Background string
	Quiet, KeepUnit, NotifyReady bool
	KillSignal                   int
}

// rest lets the small program wait, and does not return then. When it returns, it is
// to be tried again after m.calm, or never.
func (m *machine) rest(c **console) (again bool) {
	if m.restless.Load() {
		settle()
		return false
	}
	if !(*c).calm() || m.execs != nil && m.execs.requests.Load() > 0 {
		m.settled.Do(settle) // it may be long
		return true
	}
	var chores []chore
	if m.parent == nil {
		var ok bool
		chores, ok = m.handOver()
		if !ok || unix.Access(waitProgram(), unix.X_OK) != nil || !m.c.Portable() || m.passphrase != nil || len(m.io.Inherit) > 0 {
			m.restless.Store(true)
			settle()
			return false
		}
	}
	console := (*c).detach()
	if console == nil {
		return true
	}
	err := m.sleep(chores, *console, (*c).fwd.Load() != nil)
	// Still here: go on as if nothing had been.
	if m.execs != nil {
		m.execs.start()
	}
	if m.reports != nil {
		m.reports.start()
	}
	*c = m.startConsole(console)
	if !errors.Is(err, errAwake) && m.parent == nil {
		m.restless.Store(true)
		settle()
		return false
	}
	return true
}

// errAwake is when something happens while everything is being stopped.
var errAwake = errors.New("something has happened")

// sleep stops everything and lets the small program wait. It returns only on error.
func (m *machine) sleep(chores []chore, console consoleState, hasConsole bool) error {
	stop, ok := m.bus.Rest()
	if !ok {
		return errAwake
	}
	defer func() { m.bus.Wake(stop) }()
	if m.execs != nil && !m.execs.pause() {
		return errAwake
	}
	if m.reports != nil {
		m.reports.pause()
	}
	if m.parent != nil {
		return m.parent.rest(m, console)
	}
	s := restState{
		First: true, Env: os.Environ(), Chores: chores, Kept: m.kept, Console: console, Calm: m.calm, Since: time.Now().UnixNano(),
		Options: restOptions{
			Machine: m.opts.Machine, Console: m.opts.Console, Background: m.opts.Background,
			Quiet: m.opts.Quiet, KeepUnit: m.opts.KeepUnit, NotifyReady: m.opts.NotifyReady, KillSignal: int(m.opts.KillSignal),
		},
		Plan: stage.Plan{
			Userns: m.plan.Userns, NoNewPrivs: m.plan.NoNewPrivs, CapBounding: m.plan.CapBounding, CapAmbient: m.plan.CapAmbient,
			Seccomp: m.plan.Seccomp, Rlimits: m.plan.Rlimits, Personality: m.plan.Personality,
			Manager: m.plan.Manager, UUID: m.plan.UUID, Env: m.plan.Env,
		},
		PID: m.c.PID, PIDFD: m.c.PIDFD, Master: -1, Notify: -1, Exec: -1, Stop: stop,
	}
	w := &waiting{pidfd: s.PIDFD, leader: s.PID, watchdog: -1, keep: []int{s.PIDFD}}
	defer w.close()
	var err error
	if stop >= 0 {
		w.watch(stop, unix.POLLIN)
	}
	if m.execs != nil {
		if s.Exec, err = descriptor(m.execs.l); err != nil {
			return err
		}
		w.watch(s.Exec, unix.POLLIN)
	}
	if m.reports != nil {
		if s.Notify, err = descriptor(m.reports.sock); err != nil {
			return err
		}
		w.watch(s.Notify, unix.POLLIN)
	}
	if hasConsole {
		s.Master = int(m.c.Master.Fd())
		w.keep = append(w.keep, s.Master)
		fd, ready, err := ptyfwd.Watch(m.c.Master)
		if err != nil {
			return err
		}
		w.ours = append(w.ours, fd)
		w.watch(fd, unix.POLLIN)
		if ready {
			return errAwake
		}
		if m.typing() {
			w.watch(0, unix.POLLIN)
		}
		w.watch(1, 0)
	}
	for _, c := range chores {
		for _, f := range c.Files {
			w.keep = append(w.keep, f.FD)
		}
	}
	if every := m.notify.watchdogEvery(); every > 0 {
		conn, err := m.notify.dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		if w.watchdog, err = descriptor(conn); err != nil {
			return err
		}
		w.every = int(every.Milliseconds())
		w.keep = append(w.keep, w.watchdog)
	}
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		return err
	}
	s.Name = strings.TrimSuffix(string(name), "\n")
	if err := w.open(&s, hasConsole); err != nil {
		return err
	}
	return m.execute(w, s.Name)
}

// waiting is what the small program is told, and the descriptors that it gets.
type waiting struct {
	program, state, here, there, watchdog, every, signals, pidfd, leader int

	events  []string // what else to wait for
	keep    []int    // stay open
	ours    []int    // of them, those that are for the small program only
	blocked *unix.Sigset_t
}

func (w *waiting) watch(fd, events int) {
	w.events = append(w.events, strconv.Itoa(fd)+":"+strconv.Itoa(events))
	if fd > 2 {
		w.keep = append(w.keep, fd)
	}
}

// open makes what is for the small program only.
func (w *waiting) open(s *restState, console bool) (err error) {
	add := func(fd int, err error) (int, error) {
		if err == nil {
			w.ours, w.keep = append(w.ours, fd), append(w.keep, fd)
		}
		return fd, err
	}
	if w.program, err = add(unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)); err != nil {
		return os.NewSyscallError("open", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	w.here, _ = add(pair[0], nil)
	w.there, _ = add(pair[1], nil)
	w.blocked = signalSet(console)
	if w.signals, err = add(unix.Signalfd(-1, w.blocked, unix.SFD_CLOEXEC)); err != nil {
		return os.NewSyscallError("signalfd", err)
	}
	if w.state, err = add(unix.MemfdCreate("machine", unix.MFD_CLOEXEC)); err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	return s.write(w.state)
}

func (w *waiting) close() {
	for _, fd := range w.ours {
		_ = unix.Close(fd)
	}
}

func (w *waiting) String() string {
	var out []string
	for _, n := range []int{w.program, w.state, w.here, w.there, w.watchdog, w.every, w.signals, w.pidfd, w.leader} {
		out = append(out, strconv.Itoa(n))
	}
	return strings.Join(append(out, w.events...), " ")
}

// execute becomes the small program, unless a signal was faster. It starts with the
// signals blocked, so that they wait for it. In the moment before, one can come to a
// thread that is about to end: the first helper asks whether the machine was to stop.
func (m *machine) execute(w *waiting, name string) error {
	return m.c.Do(func() error {
		var old unix.Sigset_t
		if err := unix.PthreadSigmask(unix.SIG_BLOCK, w.blocked, &old); err != nil {
			return os.NewSyscallError("sigprocmask", err)
		}
		defer func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil) }()
		// The thread was made for the set-up.
		if err := stage.AsMainThread(); err != nil {
			return err
		}
		for _, fd := range w.keep {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
				return os.NewSyscallError("fcntl", err)
			}
		}
		err := errAwake
		if len(m.signals) == 0 && !isClosed(m.ends) {
			env := []string{waitVariable + "=" + w.String(), nameVariable + "=" + name}
			err = os.NewSyscallError("execve", syscall.Exec(waitProgram(), os.Args, env))
		}
		for _, fd := range w.keep {
			unix.CloseOnExec(fd)
		}
		return err
	})
}

// signalSet are the signals that end a machine, and with a console the one that its
// size has changed.
func signalSet(console bool) *unix.Sigset_t {
	set := new(unix.Sigset_t)
	bits := 8 * int(unsafe.Sizeof(set.Val[0]))
	add := func(sig os.Signal) {
		n := int(sig.(syscall.Signal)) - 1
		set.Val[n/bits] |= 1 << (n % bits)
	}
	for _, sig := range ending {
		add(sig)
	}
	if console {
		add(unix.SIGWINCH)
	}
	return set
}

// descriptor is that of a socket. It stays the socket's.
func descriptor(c syscall.Conn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	n := -1
	err = raw.Control(func(fd uintptr) { n = int(fd) })
	return n, err
}

// write puts the state into a file in memory.
func (s *restState) write(fd int) error {
	data := pack.Marshal(*s)
	if err := unix.Ftruncate(fd, int64(len(data))); err != nil {
		return os.NewSyscallError("ftruncate", err)
	}
	if n, err := unix.Pwrite(fd, data, 0); err != nil || n != len(data) {
		return errors.Join(os.NewSyscallError("pwrite", err), errors.New("state is not written down"))
	}
	return nil
}
