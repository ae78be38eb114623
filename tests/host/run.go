package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Result is what a command left. Exit is -1 when it was killed or did not start,
// and Err says why.
type Result struct {
	Argv           []string
	Stdout, Stderr string
	Exit           int
	Err            error
	Took           time.Duration
}

// String is the result as a failure message shows it.
func (r Result) String() string {
	s := fmt.Sprintf("%s: exit %d", strings.Join(r.Argv, " "), r.Exit)
	if r.Err != nil {
		s += " (" + r.Err.Error() + ")"
	}
	return s + "\nstdout: " + r.Stdout + "\nstderr: " + r.Stderr
}

// Output is stdout and stderr after one another.
func (r Result) Output() string { return r.Stdout + r.Stderr }

// command makes a command that runs in all namespaces of the host, in a cgroup
// of its own there, which release removes when nothing is left in it.
func (h *Host) command(ctx context.Context, user string, argv []string) (cmd *exec.Cmd, release func(), err error) {
	if len(argv) == 0 {
		return nil, nil, errors.New("run: empty command")
	}
	dir := filepath.Join(h.cgroup, "payload", "run-"+strconv.FormatInt(h.runs.Add(1), 10))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, nil, err
	}
	cg, err := os.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	args := []string{"-t", strconv.Itoa(h.pid1.Pid), "-m", "-p", "-i", "-u", "-n", "-C", "-r", "-w", "--", "env", "-i"}
	home := "/root"
	if user != "" {
		home = "/home/" + user
	}
	args = append(args, "HOME="+home, "TERM=xterm", "LANG=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	if user != "" {
		args = append(args, "USER="+user, "setpriv", "--reuid="+user, "--regid="+user, "--init-groups", "--")
	}
	cmd = exec.CommandContext(ctx, "nsenter", append(args, argv...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())}
	// nsenter has forked: killing it would leave the command behind.
	cmd.Cancel = func() error {
		return os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	}
	cmd.WaitDelay = 2 * time.Second
	return cmd, func() {
		cg.Close()
		if ctx.Err() != nil {
			killCgroup(dir) // waits until all are gone
		}
		os.Remove(dir)
	}, nil
}

// Run runs a command in the host as root.
func (h *Host) Run(ctx context.Context, argv ...string) Result {
	return h.run(ctx, "", nil, argv)
}

// RunAs runs a command in the host as a user, with no session of logind's.
func (h *Host) RunAs(ctx context.Context, user string, argv ...string) Result {
	return h.run(ctx, user, nil, argv)
}

// RunInput is Run with standard input.
func (h *Host) RunInput(ctx context.Context, in io.Reader, argv ...string) Result {
	return h.run(ctx, "", in, argv)
}

func (h *Host) run(ctx context.Context, user string, in io.Reader, argv []string) Result {
	res := Result{Argv: argv, Exit: -1}
	cmd, release, err := h.command(ctx, user, argv)
	if err != nil {
		res.Err = err
		return res
	}
	defer release()
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &errOut
	start := time.Now()
	err = cmd.Run()
	res.Took = time.Since(start)
	res.Stdout, res.Stderr = out.String(), errOut.String()
	if ctx.Err() != nil {
		res.Err = ctx.Err()
		return res
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		res.Exit = 0
	case errors.As(err, &exit) && exit.Exited():
		res.Exit = exit.ExitCode()
	default:
		res.Err = err
	}
	return res
}

// commandTimeout bounds what tests run without a deadline of their own.
const commandTimeout = 90 * time.Second

// MustRun runs a command as root and returns its stdout; the test ends if it fails.
func (h *Host) MustRun(t testing.TB, argv ...string) string {
	t.Helper()
	r := h.Try(argv...)
	if r.Exit != 0 {
		t.Fatal(r)
	}
	return r.Stdout
}

// Try is Run with the usual time-out.
func (h *Host) Try(argv ...string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	return h.Run(ctx, argv...)
}

// TryAs is RunAs with the usual time-out.
func (h *Host) TryAs(user string, argv ...string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	return h.RunAs(ctx, user, argv...)
}

// Shell runs a script with bash -e in the host; the test ends if it fails.
func (h *Host) Shell(t testing.TB, script string) string {
	t.Helper()
	return h.MustRun(t, "bash", "-ec", script)
}

// Eventually calls f until it returns nil, for things that have no event to
// wait on; the test ends when the time is over.
func Eventually(t testing.TB, d time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(d)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still after %v: %v", d, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
