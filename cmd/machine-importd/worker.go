package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"machined/dbus/import1/server"
	"machined/transfer"
)

// workerArg makes this program a worker. The request comes on descriptor 3,
// which closes when importd dies; the file of the transfer, if it has one, is 4.
const workerArg = "--worker"

// event is one line that a worker writes on its standard output.
type event struct {
	Progress *float64 `json:"progress,omitempty"`
	Priority int      `json:"priority,omitempty"`
	Line     string   `json:"line,omitempty"`
}

// order is what a worker is told.
type order struct {
	Request transfer.Request
	HasFile bool
}

// launcher starts workers as processes.
type launcher struct{}

// Start is for server.Launcher.
func (launcher) Start(req transfer.Request) (server.Worker, error) {
	orders, orderEnd, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	defer func() { _ = orders.Close() }()
	cmd := exec.Command("/proc/self/exe", workerArg)
	cmd.Args[0] = "machine-importd-worker"
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{orders}
	if req.File != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, req.File)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if !req.Kind.Pulls() && os.Geteuid() == 0 { // else the filter of system calls has to do
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNET
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		_ = orderEnd.Close()
		return nil, fmt.Errorf("start worker: %w", err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		_ = orderEnd.Close()
		return nil, fmt.Errorf("start worker: %w", err)
	}
	p := &process{cmd: cmd, orders: orderEnd, done: make(chan struct{})}
	if err := json.NewEncoder(orderEnd).Encode(order{Request: req, HasFile: req.File != nil}); err != nil {
		p.Stop(true)
		_ = out.Close()
		_ = cmd.Wait()
		_ = orderEnd.Close()
		return nil, fmt.Errorf("start worker: %w", err)
	}
	go p.follow(out, req)
	return p, nil
}

// process is a worker seen from importd.
type process struct {
	cmd     *exec.Cmd
	orders  *os.File
	done    chan struct{}
	mu      sync.Mutex // guards ended: no signal goes to a PID that was reaped
	ended   bool
	stopped bool // somebody wanted it to end
	err     error
}

// follow passes on what the worker tells, until it ends.
func (p *process) follow(out io.Reader, req transfer.Request) {
	defer close(p.done)
	lines := bufio.NewScanner(out)
	lines.Buffer(make([]byte, 64<<10), 64<<10)
	for lines.Scan() {
		var ev event
		if json.Unmarshal(lines.Bytes(), &ev) != nil {
			continue
		}
		if ev.Progress != nil {
			req.Progress(*ev.Progress)
		}
		if ev.Line != "" {
			req.Log(ev.Priority, ev.Line)
		}
	}
	_, _ = io.Copy(io.Discard, out)
	// The signal must not reach a process that was reaped, so wait without reaping first.
	var info unix.Siginfo
	for errors.Is(unix.Waitid(unix.P_PID, p.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
	p.mu.Lock()
	p.ended = true
	p.err = p.cmd.Wait()
	stopped := p.stopped
	p.mu.Unlock()
	var exit *exec.ExitError
	if errors.As(p.err, &exit) && !stopped {
		status, ok := exit.Sys().(syscall.WaitStatus)
		switch {
		case ok && status.Signaled():
			req.Log(transfer.Err, fmt.Sprintf("The process of this transfer was ended by signal %s.", unix.SignalName(status.Signal())))
		case exit.ExitCode() != 1: // else it has said why
			req.Log(transfer.Err, fmt.Sprintf("The process of this transfer has crashed with status %d.", exit.ExitCode()))
		}
	}
	_ = p.orders.Close()
}

// Wait is for server.Worker.
func (p *process) Wait() error {
	<-p.done
	return p.err
}

// Stop is for server.Worker.
func (p *process) Stop(force bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	p.stopped = true
	sig := unix.SIGTERM
	if force {
		sig = unix.SIGKILL
	}
	_ = unix.Kill(p.cmd.Process.Pid, sig)
	_ = unix.Kill(p.cmd.Process.Pid, unix.SIGCONT)
}

// worker does the transfer that it is told on descriptor 3. It returns the exit status.
func worker() int {
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	tell := func(ev event) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(ev) // nobody listens any more: the end comes by the pipe
	}
	fail := func(err error) int {
		tell(event{Priority: transfer.Err, Line: err.Error()})
		return 1
	}
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer cancel()
	unix.CloseOnExec(3)
	orders := os.NewFile(3, "orders")
	dec := json.NewDecoder(orders)
	var ord order
	if err := dec.Decode(&ord); err != nil {
		return fail(fmt.Errorf("read order: %w", err))
	}
	req := ord.Request
	if ord.HasFile {
		unix.CloseOnExec(4)
		req.File = os.NewFile(4, req.Remote)
	}
	go func() { // importd is gone when its end of the pipe is
		_, _ = io.Copy(io.Discard, orders)
		cancel()
	}()
	req.Log = func(priority int, line string) { tell(event{Priority: priority, Line: line}) }
	req.Progress = func(fraction float64) { tell(event{Progress: &fraction}) }
	if err := transfer.Prepare(&req); err != nil {
		return fail(err)
	}
	if err := sandbox(req); err != nil {
		return fail(fmt.Errorf("sandbox: %w", err))
	}
	err := transfer.Run(ctx, req)
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		tell(event{Priority: transfer.Notice, Line: "Transfer aborted."})
		return 1
	}
	return fail(err)
}
