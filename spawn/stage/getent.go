package stage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/caps"
	"machined/internal/pack"
)

// GetentName is how this program is called when it becomes the machine's getent.
const GetentName = "(sd-getent)"

// Bounds for the machine's getent, which may be anything: it is the image's.
const (
	getentTime   = 90 * time.Second
	getentOutput = 64 << 10
	passwdSize   = 4 << 20
)

// getentSpec is what the child needs to become getent.
type getentSpec struct {
	Program string
	Args    []string
	Seccomp [][]byte
}

// getent runs the machine's getent(1) and returns its line. The program belongs
// to the image, so that it runs with no capability at all, with the payload's
// system call filter, without a way to more, and nothing of it is left when the
// payload starts.
func (in *inner) getent(database, key string) (string, error) {
	if strings.HasPrefix(key, "-") {
		return "", fmt.Errorf("name %q starts with a dash", key)
	}
	program := ""
	for _, p := range []string{"/usr/bin/getent", "/bin/getent"} {
		if in.root.exists(p) {
			program = p
			break
		}
	}
	if program == "" {
		if database == "passwd" || database == "group" {
			return accountLine(in.root, database, key)
		}
		return "", errors.New("the image has no getent program")
	}
	spec := pack.Marshal(getentSpec{
		Program: program, Args: []string{"getent", database, key}, Seccomp: in.plan.Seccomp,
	})
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer null.Close()
	exe, err := unix.FcntlInt(uintptr(in.exe), unix.F_DUPFD_CLOEXEC, 64)
	if err != nil {
		return "", os.NewSyscallError("fcntl", err)
	}
	self := os.NewFile(uintptr(exe), "self")
	defer self.Close()
	ctx, cancel := context.WithTimeout(context.Background(), getentTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, fmt.Sprintf("/proc/self/fd/%d", exe))
	cmd.Args = []string{GetentName}
	cmd.Env = []string{"GOMAXPROCS=1", "GOGC=off"}
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(spec)
	cmd.Stderr = null
	var out limited
	cmd.Stdout = &out
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if !in.plan.SharePID {
		killRest()
	}
	if ctx.Err() != nil {
		return "", fmt.Errorf("getent of the image did not end within %v", getentTime)
	}
	line, _, _ := strings.Cut(string(out.data), "\n")
	if err != nil || line == "" {
		return "", errors.New("no such user in the image")
	}
	return line, nil
}

// limited keeps the beginning of what is written to it.
type limited struct{ data []byte }

func (l *limited) Write(p []byte) (int, error) {
	l.data = append(l.data, p[:min(len(p), getentOutput-len(l.data))]...)
	return len(p), nil
}

// killRest ends everything else in the PID namespace, of which we are the init.
func killRest() {
	_ = unix.Kill(-1, unix.SIGKILL)
	for {
		_, err := unix.Wait4(-1, nil, 0, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// getentMain becomes the machine's getent. It gives up everything first.
func getentMain() error {
	var spec getentSpec
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	if err := pack.Unmarshal(data, &spec); err != nil {
		return err
	}
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Dup3(null, 0, 0); err != nil {
		return err
	}
	// Of no use to it: ours, and whatever the caller of the spawner passed on.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return err
	}
	if _, err := unix.Setsid(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	for _, filter := range spec.Seccomp {
		if err := loadSeccomp(filter); err != nil {
			return err
		}
	}
	if err := caps.Apply(0, 0, 0, 0, 0); err != nil {
		return err
	}
	return unix.Exec(spec.Program, spec.Args, []string{"PATH=" + DefaultPath})
}
