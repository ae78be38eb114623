package spawn

import (
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// notifier speaks sd_notify(3) to the service manager that started us.
type notifier struct{ addr *net.UnixAddr }

func newNotifier() notifier {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return notifier{}
	}
	if name[0] == '@' {
		name = "\x00" + name[1:]
	}
	return notifier{&net.UnixAddr{Name: name, Net: "unixgram"}}
}

func (n notifier) send(lines ...string) {
	if n.addr == nil {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, n.addr)
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = conn.Write([]byte(strings.Join(lines, "\n")))
}

// watchdog keeps the service manager's watchdog content until stop closes.
func (n notifier) watchdog(stop <-chan struct{}) {
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || usec <= 0 || n.addr == nil {
		return
	}
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return
	}
	go func() {
		tick := time.NewTicker(time.Duration(usec) * time.Microsecond / 2)
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
	sock := conn.(*net.UnixConn)
	m.undo(func() { _ = sock.Close() })
	go func() {
		buf := make([]byte, maxNotify)
		oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*253))
		for {
			n, oobn, flags, _, err := sock.ReadMsgUnix(buf, oob)
			if err != nil {
				return
			}
			if pid := sys.Sender(oob[:oobn]); pid != leader || flags&unix.MSG_TRUNC != 0 {
				continue
			}
			m.forward(string(buf[:n]))
		}
	}()
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
