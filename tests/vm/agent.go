package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// The agent's name in the machine, and the port that it is reached by.
const (
	agentArg  = "machined-test-agent"
	agentPath = "/usr/local/lib/machined-test-agent"
	portName  = "org.machined.test"
)

// agentUnit starts the agent as early as commands make sense.
const agentUnit = `[Unit]
Description=Agent of the test suite
DefaultDependencies=no
After=systemd-udevd.service dbus.socket
[Service]
ExecStart=-@` + agentPath + ` ` + agentArg + `
Environment=HOME=/root TERM=xterm LANG=C.UTF-8
KillMode=process
[Install]
WantedBy=sysinit.target
`

// init diverts the test binary before any test code runs.
func init() {
	if os.Args[0] != agentArg {
		return
	}
	if err := serve("/dev/virtio-ports/" + portName); err != nil {
		fmt.Fprintln(os.Stderr, "test agent:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// request is a command to run; reply what became of it. The first reply, of ID 0,
// says that the agent is there.
type request struct {
	ID      int64
	Argv    []string
	Input   []byte
	Timeout time.Duration
}

type reply struct {
	ID             int64
	Stdout, Stderr string
	Exit           int // -1: killed, or not started
	Err            string
	Took           time.Duration
}

// serve runs commands side by side until the port is closed.
func serve(port string) error {
	f, err := openPort(port)
	if err != nil {
		return err
	}
	defer f.Close()
	var mu sync.Mutex
	out := json.NewEncoder(f)
	send := func(r reply) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(r)
	}
	send(reply{})
	in := json.NewDecoder(f)
	for {
		var r request
		if err := in.Decode(&r); err != nil {
			return err
		}
		go func() { send(execute(r)) }()
	}
}

// openPort waits for udev to name the port.
func openPort(port string) (*os.File, error) {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		f, err := os.OpenFile(port, os.O_RDWR, 0)
		if err == nil || !errors.Is(err, os.ErrNotExist) || time.Now().After(deadline) {
			return f, err
		}
	}
}

func execute(r request) reply {
	ctx, cancel := context.WithTimeout(context.Background(), r.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.Argv[0], r.Argv[1:]...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Dir = bytes.NewReader(r.Input), &out, &errOut, "/root"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second
	start := time.Now()
	err := cmd.Run()
	res := reply{ID: r.ID, Stdout: out.String(), Stderr: errOut.String(), Exit: -1, Took: time.Since(start)}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		res.Err = ctx.Err().Error()
	case err == nil:
		res.Exit = 0
	case errors.As(err, &exit) && exit.Exited():
		res.Exit = exit.ExitCode()
	default:
		res.Err = err.Error()
	}
	return res
}
