package spawn

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/caps"
	"machined/spawn/stage"
)

// JournalSink says where what the machine's journal gets is written to, too.
type JournalSink struct {
	Path string // a file *.journal, or a directory; "": nowhere
	// Limits are options of systemd-journal-remote(8), such as --max-use=1048576.
	Limits []string
}

const (
	// sinkCredential tells the machine's journal where to connect
	// (systemd-journald.service(8)).
	sinkCredential = "journal.forward_to_socket"
	sinkInside     = "/run/host/journal/socket"
	sinkDir        = "/run/systemd/nspawn/journal"
	sinkPatience   = 5 * time.Second
)

var sinkPrograms = []string{"/usr/lib/systemd/systemd-journal-remote", "/lib/systemd/systemd-journal-remote"}

// forwardJournal starts systemd-journal-remote on a socket that the machine sees.
func (m *machine) forwardJournal() error {
	sink := m.opts.JournalSink
	if sink.Path == "" {
		return nil
	}
	program := ""
	for _, p := range sinkPrograms {
		if unix.Access(p, unix.X_OK) == nil {
			program = p
			break
		}
	}
	if program == "" {
		return errors.New("--forward-journal= needs systemd-journal-remote, which is not installed (package systemd-journal-remote)")
	}
	mode := "host"
	if strings.HasSuffix(sink.Path, ".journal") {
		mode = "none"
	} else if err := os.MkdirAll(sink.Path, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(sinkDir, 0o700); err != nil {
		return err
	}
	socket := filepath.Join(sinkDir, m.opts.Machine)
	_ = os.Remove(socket) // of a run that was killed
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen for the journal: %w", err)
	}
	m.undo(func() { _ = l.Close() }) // removes the socket
	// Nobody else gets past the directory; the machine's root is not its owner.
	if err := os.Chmod(socket, 0o666); err != nil {
		return err
	}
	f, err := l.File()
	if err != nil {
		return err
	}
	defer f.Close()
	args := append([]string{program, "--output=" + sink.Path, "--split-mode=" + mode}, sink.Limits...)
	if err := m.startSink(args, f); err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	m.plan.Mounts = append(m.plan.Mounts, stage.Mount{Kind: "bind", Sources: []stage.Source{{Path: socket}}, Dest: sinkInside})
	m.plan.Credentials = append(m.plan.Credentials, stage.Credential{ID: sinkCredential, Data: []byte(sinkInside)})
	return nil
}

// startSink runs the program with nothing but what it takes to write files: it reads
// what the machine says. It ends with this process, and before m.cleanUp is over.
func (m *machine) startSink(args []string, socket *os.File) error {
	started, ended := make(chan error, 1), make(chan struct{})
	var process *os.Process
	go func() {
		defer close(ended)
		// Never unlocked: the thread has few rights left, and the program's end
		// follows that of its thread.
		runtime.LockOSThread()
		rights := caps.Bit(unix.CAP_DAC_OVERRIDE) | caps.Bit(unix.CAP_CHOWN) | caps.Bit(unix.CAP_FOWNER)
		err := errors.Join(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), caps.Apply(rights, rights, rights, rights, 0))
		if err == nil {
			// Sockets are passed on by a variable that has the program's own PID.
			script := `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"`
			process, err = os.StartProcess("/bin/sh", append([]string{"sh", "-c", script}, args...), &os.ProcAttr{
				Dir: "/", Env: []string{"PATH=" + stage.DefaultPath},
				Files: []*os.File{nil, m.io.Stderr, m.io.Stderr, socket},
				Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setsid: true},
			})
		}
		started <- err
		if err == nil {
			if state, err := process.Wait(); err == nil && !state.Success() && state.Exited() {
				m.warn("systemd-journal-remote ended with status %d: the journal goes nowhere else any more.", state.ExitCode())
			}
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	m.undo(func() {
		_ = process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(sinkPatience):
			_ = process.Kill()
			<-ended
		}
	})
	return nil
}

// SinkLimit is the option of systemd-journal-remote(8) for a limit in bytes, or a
// number of files.
func SinkLimit(name string, n uint64) string { return "--" + name + "=" + strconv.FormatUint(n, 10) }
