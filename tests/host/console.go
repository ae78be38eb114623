package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a command that runs in the host beside the test, on a terminal of
// the host's or with pipes.
type Process struct {
	cmd     *exec.Cmd
	release func()
	tty     *os.File // nil without a terminal
	done    chan struct{}
	waitErr error

	mu     sync.Mutex
	output strings.Builder
	seen   int           // how much of output Expect has consumed
	grew   chan struct{} // closed and replaced when output grows
}

// Write adds output; it makes Process the command's stdout and stderr.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.output.Write(b)
	close(p.grew)
	p.grew = make(chan struct{})
	return len(b), nil
}

// Start starts a command as root, without a terminal. It is killed at the test's end.
func (h *Host) Start(t testing.TB, argv ...string) *Process {
	t.Helper()
	return h.start(t, "", false, argv)
}

// StartTTY starts a command as a user ("" is root) on a terminal of the host's, 80x24.
func (h *Host) StartTTY(t testing.TB, user string, argv ...string) *Process {
	t.Helper()
	return h.start(t, user, true, argv)
}

func (h *Host) start(t testing.TB, user string, terminal bool, argv []string) *Process {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd, release, err := h.command(ctx, user, argv)
	if err != nil {
		cancel()
		t.Fatalf("start %q: %v", argv, err)
	}
	p := &Process{cmd: cmd, release: release, done: make(chan struct{}), grew: make(chan struct{})}
	var peer *os.File
	if terminal {
		if p.tty, peer, err = h.openPTY(); err != nil {
			t.Fatalf("open terminal of host %s: %v", h.Name, err)
		}
		if user != "" {
			uid, _ := strconv.Atoi(strings.TrimSpace(h.MustRun(t, "id", "-u", user)))
			if err := peer.Chown(uid, -1); err != nil {
				t.Fatalf("give terminal to %q: %v", user, err)
			}
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = peer, peer, peer
		cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	} else {
		cmd.Stdout, cmd.Stderr = p, p
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %q: %v", argv, err)
	}
	drained := make(chan struct{})
	if terminal {
		peer.Close()
		go func() {
			defer close(drained)
			buf := make([]byte, 4096)
			for {
				n, err := p.tty.Read(buf)
				p.Write(buf[:n])
				if err != nil { // EIO: the last holder of the other end is gone
					return
				}
			}
		}()
	} else {
		close(drained)
	}
	go func() {
		p.waitErr = cmd.Wait()
		select {
		case <-drained:
		case <-time.After(time.Second): // somebody else still holds the terminal
		}
		close(p.done)
	}()
	t.Cleanup(func() {
		cancel()
		<-p.done
		if p.tty != nil {
			p.tty.Close()
		}
		release()
		if t.Failed() {
			t.Logf("output of %q:\n%s", argv, p.Output())
		}
	})
	return p
}

// openPTY opens a terminal of the host's own devpts, so that its name means
// something to the programs in the host.
func (h *Host) openPTY() (master, peer *os.File, err error) {
	fd, err := unix.Open(h.Path("/dev/pts/ptmx"), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("open", err)
	}
	master = os.NewFile(uintptr(fd), "ptmx")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, errors.Join(os.NewSyscallError("ioctl", err), master.Close())
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		return nil, nil, errors.Join(os.NewSyscallError("ioctl", err), master.Close())
	}
	pfd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, nil, errors.Join(os.NewSyscallError("ioctl", errno), master.Close())
	}
	return master, os.NewFile(pfd, "pts"), nil
}

// Output is all output so far.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// Send types text at the terminal.
func (p *Process) Send(t testing.TB, text string) {
	t.Helper()
	if _, err := p.tty.WriteString(text); err != nil {
		t.Fatalf("type %q: %v", text, err)
	}
}

// Expect waits until want appears in output that no earlier Expect has consumed,
// and returns what came before it.
func (p *Process) Expect(t testing.TB, want string) string {
	t.Helper()
	timeout := time.After(60 * time.Second)
	for ended := false; ; {
		p.mu.Lock()
		rest := p.output.String()[p.seen:]
		if i := strings.Index(rest, want); i >= 0 {
			p.seen += i + len(want)
			p.mu.Unlock()
			return rest[:i]
		}
		grew := p.grew
		p.mu.Unlock()
		if ended {
			t.Fatalf("%q ended (%v) before %q; since then: %q", p.cmd.Args[len(p.cmd.Args)-1], p.waitErr, want, rest)
		}
		select {
		case <-grew:
		case <-p.done:
			ended = true
		case <-timeout:
			t.Fatalf("no %q in 60 s; since then: %q", want, rest)
		}
	}
}

// Wait waits for the command's end and returns its exit status, -1 for a signal.
func (p *Process) Wait(t testing.TB) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(60 * time.Second):
		t.Fatalf("%q still runs after 60 s; output: %q", p.cmd.Args[len(p.cmd.Args)-1], p.Output())
	}
	return p.cmd.ProcessState.ExitCode()
}

// Running says whether the command still runs.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal to everything the command has in its cgroup.
func (p *Process) Signal(h *Host, sig unix.Signal) error {
	dir := fmt.Sprintf("/proc/%d/cgroup", p.cmd.Process.Pid)
	data, err := os.ReadFile(dir)
	if err != nil {
		return err
	}
	root, err := cgroupRoot()
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		pids, err := os.ReadFile(filepath.Join(root, path, "cgroup.procs"))
		if err != nil {
			return err
		}
		for f := range strings.FieldsSeq(string(pids)) {
			pid, err := strconv.Atoi(f)
			if err == nil && pid != p.cmd.Process.Pid {
				unix.Kill(pid, sig)
			}
		}
	}
	return nil
}
