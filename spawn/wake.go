package spawn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/pack"
	"machined/spawn/stage"
)

// Waking tells whether this program is the helper of the small one that waits for it,
// or, again being true, one that is to start a machine that it has waited for once more.
func Waking() (state, parent int, again, ok bool) {
	text := os.Getenv(wakeVariable)
	if text == "" {
		text, again = os.Getenv(againVariable), true
	}
	first, second, _ := strings.Cut(text, " ")
	state, err1 := strconv.Atoi(first)
	parent, err2 := strconv.Atoi(second)
	if err1 != nil || err2 != nil || state < 3 || parent < 3 {
		return -1, -1, false, false
	}
	return state, parent, again, true
}

// readState reads what the earlier program has left, and takes its environment.
func readState(fd int) (*restState, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	data := make([]byte, st.Size)
	if n, err := unix.Pread(fd, data, 0); err != nil || n != len(data) {
		return nil, errors.Join(os.NewSyscallError("pread", err), errors.New("state is incomplete"))
	}
	s := new(restState)
	if err := pack.Unmarshal(data, s); err != nil {
		return nil, err
	}
	os.Clearenv()
	for _, v := range s.Env {
		for i := 1; i < len(v); i++ { // a name may start with =
			if v[i] == '=' {
				_ = os.Setenv(v[:i], v[i+1:])
				break
			}
		}
	}
	// The main thread's name, which the execution has changed.
	_ = os.WriteFile("/proc/self/comm", []byte(s.Name), 0)
	return s, nil
}

// waiter is the small program that this one helps (wait/machine-wait.c).
type waiter struct {
	f     *os.File // messages, each read as a whole
	state *restState
	fd    int // of the state
}

// WakeUp does for a machine what is to be done, until nothing happens any more or the
// machine ends. The process that waits has told what descriptors it has.
func WakeUp(state, parent int, streams Streams, bus Registrar) error {
	// Nothing of it is for programs that we start.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return os.NewSyscallError("close_range", err)
	}
	// They come to the process that waits, which tells us.
	signal.Ignore(ending...)
	s, err := readState(state)
	if err != nil {
		return fmt.Errorf("go on with the machine: %w", err)
	}
	if err := unix.SetNonblock(parent, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	w := &waiter{f: os.NewFile(uintptr(parent), "waiter"), state: s, fd: state}
	o := &Options{
		Machine: s.Options.Machine, Console: s.Options.Console, Background: s.Options.Background, Quiet: s.Options.Quiet,
		KeepUnit: s.Options.KeepUnit, NotifyReady: s.Options.NotifyReady, KillSignal: unix.Signal(s.Options.KillSignal),
	}
	m := &machine{
		opts: o, io: streams, bus: bus, notify: newNotifier(), signals: make(chan os.Signal, 64), plan: s.Plan,
		parent: w, asked: s.Asked, ends: make(chan struct{}),
	}
	m.notify.sender = os.Getppid()
	m.adopt(s.Chores)
	var master, reports *os.File
	if s.Master >= 0 {
		master = os.NewFile(uintptr(s.Master), "console")
	}
	if s.Notify >= 0 {
		reports = os.NewFile(uintptr(s.Notify), "notify")
	}
	m.c = stage.Adopt(s.PID, s.PIDFD, master, reports)
	// Soon over again: the next rest waits longer.
	if m.calm = settleAfter; !s.First && time.Since(time.Unix(0, s.Since)) < 2*s.Calm {
		m.calm = min(2*s.Calm, maxCalm)
	}
	go w.listen(m)
	if reports != nil {
		m.payloadNotify(reports, s.PID)
	}
	if s.Exec >= 0 {
		f := os.NewFile(uintptr(s.Exec), "exec")
		if l, err := net.FileListener(f); err == nil {
			m.serveExec(l.(*net.UnixListener))
		}
	}
	if s.Stop >= 0 {
		bus.Wake(s.Stop)
	}
	if s.First {
		m.calm = 0
		if o.KeepUnit && !m.asked && bus.Stopping() {
			m.signals <- unix.SIGTERM
		}
	}
	result := m.stand(context.Background(), m.startConsole(&s.Console))
	code, final := m.exitStatus(result)
	m.cleanUp(!final)
	if !final {
		return w.say("A" + m.keptFiles())
	}
	return w.say("Q" + strconv.Itoa(code))
}

func (w *waiter) say(message string) error {
	_, err := w.f.Write([]byte(message))
	return err
}

// listen takes in what the process that waits says.
func (w *waiter) listen(m *machine) {
	buf := make([]byte, 32)
	for {
		n, err := w.f.Read(buf)
		if err != nil || n < 2 {
			return
		}
		number, err := strconv.Atoi(string(buf[1:n]))
		switch {
		case err != nil:
		case buf[0] == 'S':
			m.signals <- unix.Signal(number)
		case buf[0] == 'E':
			m.status = syscall.WaitStatus(number)
			close(m.ends)
			return
		}
	}
}

// rest ends this program, if nothing has happened.
func (w *waiter) rest(m *machine, console consoleState) error {
	s := w.state
	s.First, s.Asked, s.Console, s.Calm, s.Since = false, m.asked, console, m.calm, time.Now().UnixNano()
	if err := s.write(w.fd); err != nil {
		return err
	}
	if len(m.signals) > 0 || isClosed(m.ends) {
		return errAwake
	}
	// What comes now stays in the socket, and the next helper reads it.
	if err := w.say("R"); err != nil {
		return err
	}
	os.Exit(0)
	return nil
}
