//go:build integration

package integration

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/tests/host"
)

func TestMain(m *testing.M) {
	if os.Geteuid() == 0 {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		err := host.Prepare(ctx, host.Suites...)
		cancel()
		if err != nil {
			fmt.Fprintln(os.Stderr, "prepare test hosts:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// onHosts runs f in a fresh host of each suite, side by side.
func onHosts(t *testing.T, f func(t *testing.T, h *host.Host)) {
	t.Helper()
	for _, suite := range host.Suites {
		t.Run(string(suite), func(t *testing.T) {
			t.Parallel()
			f(t, host.Boot(t, host.Config{Suite: suite}))
		})
	}
}

// clients are the machinectl programs that a host has: the installed one, and stock's beside ours.
func clients(h *host.Host) map[string]string {
	c := map[string]string{"installed": "machinectl"}
	if h.Impl == host.Ours {
		c["stock"] = h.Stock("machinectl")
	}
	return c
}

// ours skips what stock cannot do.
func ours(t *testing.T) {
	t.Helper()
	if host.DefaultImpl() == host.Stock {
		t.Skip("stock has no such thing")
	}
}

// version is the release number that os-release of a suite's tree has.
func version(s host.Suite) string {
	if s == host.Bookworm {
		return "12"
	}
	return "13"
}

// bootMachine starts a Debian tree as machine NAME and waits until it is up.
func bootMachine(t *testing.T, h *host.Host, name string) {
	t.Helper()
	h.OSTree(t, name)
	h.MustRun(t, "machinectl", "start", name)
	waitRunning(t, h, name)
}

// waitRunning waits until the system in a machine has booted, for good or bad.
func waitRunning(t *testing.T, h *host.Host, name string) {
	t.Helper()
	// The machine's bus comes a moment after the machine; nothing outside tells when.
	host.Eventually(t, 60*time.Second, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		r := h.Run(ctx, "systemctl", "-M", name, "is-system-running")
		if s := strings.TrimSpace(r.Stdout); s != "running" && s != "degraded" {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
}

// waitGone waits until no machine is registered any more.
func waitGone(t *testing.T, h *host.Host) {
	t.Helper()
	host.Eventually(t, 30*time.Second, func() error {
		if m := machines(t, h); len(m) > 0 {
			return fmt.Errorf("machines left: %v", m)
		}
		return nil
	})
}

// match fails for each pattern (multi-line mode) that text lacks.
func match(t *testing.T, text string, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile("(?m)" + p).MatchString(text) {
			t.Errorf("no match of %q in:\n%s", p, text)
		}
	}
}

// manager names the daemon on the bus.
const (
	busName   = "org.freedesktop.machine1"
	busPath   = "/org/freedesktop/machine1"
	managerIf = busName + ".Manager"
)

// call calls a Manager method with a deadline.
func call(conn *godbus.Conn, method string, args ...any) *godbus.Call {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return conn.Object(busName, busPath).CallWithContext(ctx, managerIf+"."+method, 0, args...)
}

// errorName is the D-Bus error name and text of a failed call.
func errorName(err error) (name, text string) {
	if e, ok := err.(godbus.Error); ok {
		if len(e.Body) > 0 {
			text, _ = e.Body[0].(string)
		}
		return e.Name, text
	}
	if err == nil {
		return "", ""
	}
	return err.Error(), ""
}

// listed is one machine of ListMachines.
type listed struct {
	Name, Class, Service string
	Path                 godbus.ObjectPath
}

// machines are the names that the daemon lists, without .host.
func machines(t *testing.T, h *host.Host) []string {
	t.Helper()
	names, err := machinesOn(h.Bus(t))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func machinesOn(conn *godbus.Conn) ([]string, error) {
	var all []listed
	if err := call(conn, "ListMachines").Store(&all); err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	var names []string
	for _, m := range all {
		if m.Name != ".host" {
			names = append(names, m.Name)
		}
	}
	return names, nil
}
