package cli

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// agentStart bounds how long the agent may take to register itself.
const agentStart = 5 * time.Second

// StartAgent runs polkit's terminal agent, so that a person without a desktop
// can type a password, and returns how to end it. It does nothing for root,
// who is never asked, and without a terminal to ask on. A missing agent is no
// error: the service then answers that authentication is required.
func StartAgent(ctx context.Context) (stop func()) {
	none := func() {}
	if os.Geteuid() == 0 || !term.IsTerminal(0) {
		return none
	}
	path, err := exec.LookPath("pkttyagent")
	if err != nil {
		return none
	}
	ready, notify, err := os.Pipe()
	if err != nil {
		return none
	}
	defer ready.Close()
	agent := exec.CommandContext(ctx, path, "--notify-fd="+strconv.Itoa(3), "--fallback")
	agent.ExtraFiles = []*os.File{notify}
	agent.Stdin, agent.Stdout, agent.Stderr = os.Stdin, os.Stdout, os.Stderr
	agent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	err = agent.Start()
	_ = notify.Close()
	if err != nil {
		return none
	}
	// The agent closes its end when it is registered.
	_ = ready.SetReadDeadline(time.Now().Add(agentStart))
	_, _ = ready.Read(make([]byte, 1))
	return func() {
		_ = agent.Process.Signal(unix.SIGTERM)
		_ = agent.Process.Signal(unix.SIGCONT)
		_ = agent.Wait()
	}
}
