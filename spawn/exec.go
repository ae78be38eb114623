package spawn

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/execreq"
	"machined/internal/sys"
	"machined/spawn/stage"
)

// listenExec takes requests for further programs in the machine, from root alone:
// machined passes on those of its callers that it has authorised. The programs get
// what the payload has, for this process is the one that knows.
func (m *machine) listenExec() {
	name := execreq.Socket(m.opts.Machine)
	err := os.MkdirAll(filepath.Dir(name), 0o700)
	var l *net.UnixListener
	if err == nil {
		_ = os.Remove(name) // of a run that was killed
		l, err = net.ListenUnix("unixpacket", &net.UnixAddr{Name: name, Net: "unixpacket"})
	}
	if err == nil {
		l.SetUnlinkOnClose(false)
		err = os.Chmod(name, 0o600)
	}
	if err != nil {
		m.say("Failed to listen for programs to run in the machine, ignoring: %v", err)
		return
	}
	m.owe(chore{Kind: choreRemove, Path: name})
	m.serveExec(l)
}

// execServer takes requests on a socket.
type execServer struct {
	m        *machine
	l        *net.UnixListener
	stopped  chan struct{} // closed when no more are taken
	running  sync.WaitGroup
	requests atomic.Int32 // that are being answered
}

func (m *machine) serveExec(l *net.UnixListener) {
	m.execs = &execServer{m: m, l: l}
	m.execs.start()
	m.undoOurs(func() {
		_ = l.Close()
		<-m.execs.stopped
		m.execs.running.Wait()
	})
}

// start starts taking requests, if that was stopped.
func (s *execServer) start() {
	if !isClosed(s.stopped) {
		return
	}
	s.stopped = make(chan struct{})
	_ = s.l.SetDeadline(time.Time{})
	go func() {
		defer close(s.stopped)
		for {
			conn, err := s.l.AcceptUnix()
			if err != nil {
				return
			}
			s.requests.Add(1)
			s.running.Go(func() {
				defer s.requests.Add(-1)
				defer conn.Close()
				if err := s.m.exec(conn); err != nil {
					_, _ = conn.Write([]byte(err.Error()))
				}
			})
		}
	}()
}

// isClosed is also true for a channel that is yet to be made.
func isClosed(c chan struct{}) bool {
	if c == nil {
		return true
	}
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// pause stops taking requests, until start; false when some are being answered.
func (s *execServer) pause() bool {
	_ = s.l.SetDeadline(time.Unix(1, 0))
	<-s.stopped
	return s.requests.Load() == 0
}

// exec answers one request as soon as it is taken. The error is for the caller.
func (m *machine) exec(conn *net.UnixConn) error {
	files, err := receiveExec(conn)
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if err != nil {
		return err
	}
	p := &m.plan
	e := stage.Entry{
		Leader: m.c.PID, Userns: p.Userns != nil, BaseEnv: m.entryEnv(), NoNewPrivs: p.NoNewPrivs,
		CapBounding: p.CapBounding, CapAmbient: p.CapAmbient, Seccomp: p.Seccomp, Rlimits: p.Rlimits, Personality: p.Personality,
	}
	if err := execreq.Read(files[0], &e.Request); err != nil {
		return err
	}
	if len(e.Request.Args) == 0 {
		return errors.New("no program to run")
	}
	if mount := cgroupMount(); mount != "" {
		if cg, err := cgroupOf(m.c.PID); err == nil {
			e.Cgroup = filepath.Join(mount, cg)
		}
	}
	process, err := stage.StartEntry(e, [4]*os.File(files[1:]), m.c.PIDFD)
	if err != nil {
		return err
	}
	for _, f := range files {
		_ = f.Close()
	}
	_, _ = conn.Write([]byte(execreq.Taken))
	_ = conn.Close()
	_, _ = process.Wait()
	if m.restless.Load() {
		settleSoon()
	}
	return nil
}

// entryEnv is what every program of the machine has in its environment.
func (m *machine) entryEnv() []string {
	env := []string{"container=" + m.plan.Manager, "container_uuid=" + m.plan.UUID, "LANG=C.UTF-8"}
	for _, v := range m.plan.Env {
		if !strings.HasPrefix(v, "container_host_") {
			env = append(env, v)
		}
	}
	return env
}

// receiveExec takes the one message of a connection, if root has made it. The
// caller closes the files, also on error.
func receiveExec(conn *net.UnixConn) (files []*os.File, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var peer *unix.Ucred
	ctlErr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(ctlErr, err); err != nil {
		return nil, err
	}
	if peer.Uid != uint32(os.Geteuid()) {
		return nil, fmt.Errorf("user %d may not run programs in the machine", peer.Uid)
	}
	buf, oob := make([]byte, 16), make([]byte, unix.CmsgSpace(4*execreq.Files))
	_, n, flags, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, err
	}
	files = sys.ControlFiles(oob[:n], "exec")
	if len(files) != execreq.Files || flags&unix.MSG_CTRUNC != 0 {
		return files, fmt.Errorf("request with %d descriptors, want %d", len(files), execreq.Files)
	}
	return files, nil
}
