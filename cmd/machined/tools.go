package main

import (
	"context"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// hostTools runs programs as children, on a host without systemd.
type hostTools struct{}

// RunTool runs a program in a mount namespace and a process group of its own; when
// ctx ends the group is ended with it.
func (hostTools) RunTool(ctx context.Context, _, _ string, argv []string, dir, output *os.File) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	cmd.Stdin = dir
	cmd.Stdout, cmd.Stderr = output, output
	// A PID namespace: whatever it has started ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	return cmd.Run()
}
