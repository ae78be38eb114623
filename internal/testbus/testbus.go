// Package testbus starts a private message bus for tests, with nothing on it,
// and plays parts on it: an authority with answers of the test's own. It is for
// tests only.
package testbus

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus"
)

const config = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=%s/bus</listen>
  <auth>EXTERNAL</auth>
  <limit name="max_replies_per_connection">1024</limit>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true"/>
    <allow receive_type="method_call"/>
    <allow receive_type="signal"/>
    <allow receive_requested_reply="true"/>
  </policy>
</busconfig>
`

// Bus is a running dbus-daemon that ends with the test.
type Bus struct {
	Address string
	tb      testing.TB
}

// Start runs a dbus-daemon. Without one the test is skipped, or fails where
// REQUIRE_ALL=1.
func Start(tb testing.TB) *Bus {
	tb.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		if os.Getenv("REQUIRE_ALL") == "1" {
			tb.Fatal("dbus-daemon is not installed")
		}
		tb.Skip("dbus-daemon is not installed")
	}
	dir, err := os.MkdirTemp("", "testbus")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	file := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(file, fmt.Appendf(nil, config, dir), 0o644); err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(program, "--nofork", "--nopidfile", "--nosyslog", "--print-address=1", "--config-file="+file)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	// The address is printed once the socket listens.
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		tb.Fatalf("dbus-daemon did not start: %v", err)
	}
	return &Bus{Address: strings.TrimSpace(line), tb: tb}
}

// Connect makes a connection that is closed with the test.
func (b *Bus) Connect() *godbus.Conn {
	b.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := dbus.Connect(ctx, b.Address)
	if err != nil {
		b.tb.Fatal(err)
	}
	b.tb.Cleanup(func() { _ = conn.Close() })
	return conn
}
