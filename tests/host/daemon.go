package host

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"
)

// stockDaemon is the drop-in that puts stock's machined in the place of ours.
const stockDaemon = "/run/systemd/system/systemd-machined.service.d/stock.conf"

// RunStockDaemon has the host run stock's machined from now on.
func (h *Host) RunStockDaemon(t testing.TB) {
	t.Helper()
	h.WriteFile(t, stockDaemon, "[Service]\nExecStart=\nExecStart="+h.Stock("systemd-machined")+"\n", 0o644)
	h.RestartDaemon(t)
}

// RunOwnDaemon undoes RunStockDaemon.
func (h *Host) RunOwnDaemon(t testing.TB) {
	t.Helper()
	if err := os.Remove(h.Path(stockDaemon)); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	h.RestartDaemon(t)
}

// RestartDaemon reads the units anew and restarts machined.
func (h *Host) RestartDaemon(t testing.TB) {
	t.Helper()
	h.MustRun(t, "systemctl", "daemon-reload")
	h.MustRun(t, "systemctl", "restart", "systemd-machined.service")
}

// DaemonPID is machined's PID in the host, as text.
func (h *Host) DaemonPID(t testing.TB) string {
	t.Helper()
	return strings.TrimSpace(h.MustRun(t, "systemctl", "show", "-p", "MainPID", "--value", "systemd-machined.service"))
}

// pipe is the standard input and output of a command.
type pipe struct {
	io.Reader
	io.WriteCloser
}

// Bus connects to the host's system bus as root, from a process in the host:
// the bus cannot tell the others there who a process outside is. It can't pass
// file descriptors. The connection ends with the test.
func (h *Host) Bus(t testing.TB) *godbus.Conn {
	t.Helper()
	cmd, release, err := h.command(t.Context(), "", []string{"socat", "-", "UNIX-CONNECT:/run/dbus/system_bus_socket"})
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := connect(pipe{out, in})
	if err != nil {
		t.Fatalf("connect to the bus of %s: %v", h.Name, err)
	}
	t.Cleanup(func() {
		conn.Close()
		waitEnd(cmd)
		release()
	})
	return conn
}

// waitEnd reaps a command whose end is not a failure: its context kills it.
func waitEnd(cmd *exec.Cmd) { _ = cmd.Wait() }

func connect(p pipe) (*godbus.Conn, error) {
	conn, err := godbus.NewConn(p)
	if err != nil {
		return nil, err
	}
	if err := conn.Auth([]godbus.Auth{godbus.AuthExternal("0")}); err != nil {
		return nil, err
	}
	return conn, conn.Hello()
}
