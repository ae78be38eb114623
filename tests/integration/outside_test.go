//go:build integration

package integration

import (
	"strconv"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"machined/tests/host"
)

// TestCallerOutside calls from a process in no PID namespace that the daemon
// could see: it may name other processes, and has no machine of its own.
func TestCallerOutside(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		conn, err := godbus.Dial("unix:path=" + h.Path("/run/dbus/system_bus_socket"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.Auth([]godbus.Auth{godbus.AuthExternal("0")}); err != nil {
			t.Fatal(err)
		}
		if err := conn.Hello(); err != nil {
			t.Fatal(err)
		}
		p := h.Start(t, "sh", "-c", "sleep 1000000 & echo pid $!; echo all; wait")
		pid, err := strconv.ParseUint(strings.TrimSpace(strings.ReplaceAll(p.Expect(t, "all"), "pid ", "")), 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		none := []struct {
			Name  string
			Value godbus.Variant
		}{}
		var path godbus.ObjectPath
		create := func(name string, leader uint64) *godbus.Call {
			return call(conn, "CreateMachine", name, []byte{}, "test", "container", uint32(leader), "", none)
		}
		if err := create("outside", pid).Store(&path); err != nil {
			t.Fatalf("create a machine: %v", err)
		}
		if err := call(conn, "GetMachineByPID", uint32(pid)).Store(&path); err != nil || path != busPath+"/machine/outside" {
			t.Errorf("machine of process %d: got %q, %v", pid, path, err)
		}
		for _, c := range []struct {
			what string
			call *godbus.Call
		}{
			{"the caller's own machine", call(conn, "GetMachineByPID", uint32(0))},
			{"a machine with the caller as leader", create("own", 0)},
			{"the object of the caller's machine", conn.Object(busName, busPath+"/machine/self").Call(busName+".Machine.GetUIDShift", 0)},
		} {
			if name, text := errorName(c.call.Err); name == "" {
				t.Errorf("%s: got %v, want an error", c.what, c.call.Body)
			} else {
				t.Logf("%s: %s (%s)", c.what, name, text)
			}
		}
		if err := call(conn, "TerminateMachine", "outside").Err; err != nil {
			t.Error(err)
		}
		waitGone(t, h)
	})
}
