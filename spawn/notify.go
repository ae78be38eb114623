package spawn

import (
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// notifier speaks sd_notify(3) to the service manager that started us.
type notifier struct {
	addr   *net.UnixAddr
	sender int // the process that it is for, 0: this one
}

func newNotifier() notifier {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return notifier{}
	}
	if name[0] == '@' {
		name = "\x00" + name[1:]
	}
	return notifier{addr: &net.UnixAddr{Name: name, Net: "unixgram"}}
}

func (n notifier) dial() (*net.UnixConn, error) { return net.DialUnix("unixgram", nil, n.addr) }

func (n notifier) send(lines ...string) {
	if n.addr == nil {
		return
	}
	conn, err := n.dial()
	if err != nil {
		return
	}
	defer conn.Close()
	message := []byte(strings.Join(lines, "\n"))
	if n.sender == 0 {
		_, _ = conn.Write(message)
		return
	}
	// The main process of a unit is the only one that is listened to.
	credentials := unix.UnixCredentials(&unix.Ucred{Pid: int32(n.sender), Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())})
	if raw, err := conn.SyscallConn(); err == nil {
		_ = raw.Write(func(fd uintptr) bool {
			_, err := unix.SendmsgN(int(fd), message, credentials, nil, unix.MSG_NOSIGNAL)
			return !errors.Is(err, unix.EAGAIN)
		})
	}
}

// watchdogEvery is how often the service manager wants a sign of life, 0 for never.
func (n notifier) watchdogEvery() time.Duration {
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || usec <= 0 || n.addr == nil {
		return 0
	}
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	return time.Duration(usec) * time.Microsecond / 2
}

// watchdog keeps the service manager's watchdog content until stop closes.
func (n notifier) watchdog(stop <-chan struct{}) {
	every := n.watchdogEvery()
	if every == 0 {
		return
	}
	go func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				n.send("WATCHDOG=1")
			case <-stop:
				return
			}
		}
	}()
}

// maxNotify bounds one message of the payload, as sd_notify's receivers do.
const maxNotify = 4096

// payloadNotify passes on what the payload's first process reports. Messages of
// other processes are not heard.
func (m *machine) payloadNotify(f *os.File, leader int) {
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return
	}
	m.reports = &reports{m: m, sock: conn.(*net.UnixConn), leader: leader}
	m.reports.start()
	m.undoOurs(func() { _ = m.reports.sock.Close() })
}

// reports reads what the payload reports.
type reports struct {
	m       *machine
	sock    *net.UnixConn
	leader  int
	stopped chan struct{} // closed when nothing is read any more
}

// start starts reading, if that was stopped.
func (r *reports) start() {
	if !isClosed(r.stopped) {
		return
	}
	r.stopped = make(chan struct{})
	_ = r.sock.SetReadDeadline(time.Time{})
	go func() {
		defer close(r.stopped)
		buf := make([]byte, maxNotify)
		oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*253))
		for {
			n, oobn, flags, _, err := r.sock.ReadMsgUnix(buf, oob)
			if err != nil {
				return
			}
			if pid := sys.Sender(oob[:oobn]); pid != r.leader || flags&unix.MSG_TRUNC != 0 {
				continue
			}
			r.m.forward(string(buf[:n]))
		}
	}()
}

// pause stops reading, until start.
func (r *reports) pause() {
	_ = r.sock.SetReadDeadline(time.Unix(1, 0))
	<-r.stopped
}

func (m *machine) forward(message string) {
	for line := range strings.SplitSeq(message, "\n") {
		switch {
		case line == "READY=1":
			if m.opts.NotifyReady {
				m.notify.send("READY=1")
			}
		case strings.HasPrefix(line, "STATUS="):
			status := strings.Map(func(r rune) rune {
				if r < ' ' || r == 0x7f {
					return -1
				}
				return r
			}, strings.TrimPrefix(line, "STATUS="))
			m.notify.send("STATUS=Container running: " + status)
		case strings.HasPrefix(line, "ERRNO="), strings.HasPrefix(line, "EXIT_STATUS="), strings.HasPrefix(line, "X_SYSTEMD_UNIT_ACTIVE="):
			m.notify.send(line)
		}
	}
}
