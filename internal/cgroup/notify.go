package cgroup

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
	"machined/internal/unit"
)

// maxNotifyBytes bounds one message (NOTIFY_BUFFER_MAX of sd_notify(3)).
const maxNotifyBytes = 4096

// notifySocket receives the readiness messages of the spawners (sd_notify(3)).
type notifySocket struct {
	conn *net.UnixConn
	path string
	done chan struct{}

	mu       sync.Mutex
	barriers map[string]chan struct{} // by what the message says
}

// listenNotify calls f for each message with the process that has sent it, by
// the credentials that the kernel attaches (unix(7), SCM_CREDENTIALS). It may
// have ended since.
func listenNotify(path string, f func(pid int, fields map[string]string)) (*notifySocket, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen for readiness: %w", err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for readiness: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var oerr error
		err = errors.Join(raw.Control(func(fd uintptr) {
			oerr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
		}), oerr)
	}
	// Messages count only from within a unit of ours, so that anybody may send.
	if err = errors.Join(err, os.Chmod(path, 0o666)); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("listen for readiness: %w", err)
	}
	n := &notifySocket{conn: conn, path: path, done: make(chan struct{}), barriers: map[string]chan struct{}{}}
	go n.run(f)
	return n, nil
}

func (n *notifySocket) close() {
	_ = n.conn.Close() // the socket file stays for the next machined to replace
	<-n.done
}

func (n *notifySocket) run(f func(int, map[string]string)) {
	defer close(n.done)
	buf := make([]byte, maxNotifyBytes)
	oob := make([]byte, 4096)
	for {
		size, oobn, flags, _, err := n.conn.ReadMsgUnix(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if isTemporary(err) {
				continue
			}
			return
		}
		pid := sys.Sender(oob[:oobn])
		if pid <= 0 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
			continue
		}
		fields := parseFields(buf[:size])
		if pid == os.Getpid() {
			n.reached(fields[barrierField])
			continue
		}
		f(pid, fields)
	}
}

// barrierField is what a message of our own to ourselves has.
const barrierField = "X_MACHINED_BARRIER"

// barrierTimeout bounds the wait for a message of our own.
const barrierTimeout = 5 * time.Second

// barrier returns when every message that has been sent by now has been
// handled: datagrams of all senders are received in their order.
func (n *notifySocket) barrier() {
	reached := make(chan struct{})
	n.mu.Lock()
	id := strconv.Itoa(len(n.barriers)) + " " + strconv.FormatInt(time.Now().UnixNano(), 36)
	n.barriers[id] = reached
	n.mu.Unlock()
	defer n.reached(id)
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetWriteDeadline(time.Now().Add(barrierTimeout))
	if _, err := conn.Write([]byte(barrierField + "=" + id)); err != nil {
		return
	}
	timeout := time.NewTimer(barrierTimeout)
	defer timeout.Stop()
	select {
	case <-reached:
	case <-n.done:
	case <-timeout.C:
	}
}

func (n *notifySocket) reached(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := n.barriers[id]; c != nil {
		delete(n.barriers, id)
		close(c)
	}
}

// parseFields reads the lines KEY=VALUE of a message; other lines are skipped.
func parseFields(message []byte) map[string]string {
	fields := map[string]string{}
	for line := range strings.Lines(string(message)) {
		if key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok {
			fields[key] = value
		}
	}
	return fields
}

func isTemporary(err error) bool {
	return errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS)
}

// unitOfSender accepts processes of the supervisor's part of a unit only: the
// payload must not speak for its spawner.
func unitOfSender(pid int) (string, bool) {
	path, err := sys.CgroupOf(pid)
	if err != nil {
		return "", false
	}
	name, subgroup, err := unit.OfCgroup(path, "")
	if err != nil || subgroup != "" && subgroup != supervisorGroup {
		return "", false
	}
	return name, true
}
