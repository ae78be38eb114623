//go:build integration

package integration

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/tests/host"
)

// D-Bus error names that stock answers with.
const (
	errInvalidArgs   = "org.freedesktop.DBus.Error.InvalidArgs"
	errFileNotFound  = "org.freedesktop.DBus.Error.FileNotFound"
	errNoSuchMachine = busName + ".NoSuchMachine"
	errNoSuchImage   = busName + ".NoSuchImage"
	errMachineExists = busName + ".MachineExists"
	errNoForPID      = busName + ".NoMachineForPID"
)

// property is a scope property as CreateMachine takes it.
type property struct {
	Name  string
	Value godbus.Variant
}

// victim starts a process in the host and returns its PID there.
func victim(t *testing.T, h *host.Host) uint32 {
	t.Helper()
	p := h.Start(t, "sh", "-c", "echo pid $$; exec sleep 1000000")
	p.Expect(t, "pid ")
	pid, err := strconv.ParseUint(strings.TrimSpace(p.Expect(t, "\n")), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(pid)
}

// TestBadRegistration: what the bus refuses leaves nothing.
func TestBadRegistration(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		conn := h.Bus(t)
		leader := victim(t, h)
		id := make([]byte, 16)
		id[0] = 1
		none := []property{}
		create := func(name string, id []byte, class string, leader uint32, root string, props []property) error {
			return call(conn, "CreateMachine", name, id, "test", class, leader, root, props).Err
		}
		long := strings.Repeat("a", 65)
		table := []struct {
			what string
			got  error
			want []string
		}{
			{"name with a slash", create("../x", id, "container", leader, "", none), []string{errInvalidArgs}},
			{"name of 65 characters", create(long, id, "container", leader, "", none), []string{errInvalidArgs}},
			{"empty name", create("", id, "container", leader, "", none), []string{errInvalidArgs}},
			{"leading dot", create(".x", id, "container", leader, "", none), []string{errInvalidArgs}},
			{".host", create(".host", id, "container", leader, "", none), []string{errInvalidArgs}},
			{"underscore", create("a_b", id, "container", leader, "", none), []string{errInvalidArgs}},
			{"id of 5 bytes", create("x", id[:5], "container", leader, "", none), []string{errInvalidArgs}},
			{"unknown class", create("x", id, "boat", leader, "", none), []string{errInvalidArgs}},
			{"relative root", create("x", id, "container", leader, "a/b", none), []string{errInvalidArgs}},
			{"leader 1", create("x", id, "container", 1, "", none), []string{errInvalidArgs}},
			{"dead leader", create("x", id, "container", 4000000, "", none), []string{
				"org.freedesktop.DBus.Error.UnixProcessIdUnknown", "org.freedesktop.systemd1.NoSuchProcess", errInvalidArgs,
			}},
			{"scope property of a wrong type", create("x", id, "container", leader, "", []property{{"TasksMax", godbus.MakeVariant("a")}}), []string{
				errInvalidArgs, "org.freedesktop.DBus.Error.InconsistentMessage", "System.Error.ENXIO",
			}},
			{"wrong signature", call(conn, "GetMachine", uint32(65)).Err, []string{errInvalidArgs}},
			{"too few arguments", call(conn, "GetMachine").Err, []string{errInvalidArgs}},
			{"unknown method", call(conn, "NoSuchMethod").Err, []string{"org.freedesktop.DBus.Error.UnknownMethod"}},
			{"unknown machine", call(conn, "GetMachine", "nope").Err, []string{errNoSuchMachine}},
			{"terminate unknown", call(conn, "TerminateMachine", "nope").Err, []string{errNoSuchMachine}},
			{"unregister unknown", call(conn, "UnregisterMachine", "nope").Err, []string{errNoSuchMachine}},
			{"unknown image", call(conn, "GetImage", "nope").Err, []string{errNoSuchImage}},
			{"process of no machine", call(conn, "GetMachineByPID", leader).Err, []string{errNoForPID}},
			{"interface of a negative index", call(conn, "CreateMachineWithNetwork", "x", id, "test", "container", leader, "", []int32{-1}, none).Err, []string{errInvalidArgs}},
			{"bad signal", call(conn, "KillMachine", ".host", "leader", int32(4711)).Err, []string{errInvalidArgs, "org.freedesktop.DBus.Error.NotSupported"}},
		}
		if h.Impl == host.Ours || h.Suite == host.Bookworm { // stock 257 drops a property that systemd does not know
			err := create("x", id, "container", leader, "", []property{{"NoSuchThing", godbus.MakeVariant("a")}})
			if name, text := errorName(err); name != "org.freedesktop.DBus.Error.PropertyReadOnly" && name != "org.freedesktop.DBus.Error.UnknownProperty" {
				t.Errorf("unknown scope property: got %q (%s)", name, text)
			}
		}
		for _, c := range table {
			name, text := errorName(c.got)
			if !slices.Contains(c.want, name) {
				t.Errorf("%s: got %q (%s), want one of %q", c.what, name, text, c.want)
			} else if text == "" {
				t.Errorf("%s: no message with %s", c.what, name)
			}
		}
		unchanged(t, h, before)

		if err := create("taken", id, "container", leader, "/", none); err != nil {
			t.Fatalf("create: %v", err)
		}
		if name, text := errorName(create("taken", id, "container", victim(t, h), "", none)); name != errMachineExists {
			t.Errorf("name that is taken: got %q (%s)", name, text)
		}
		t.Logf("leader that is a machine's already: %v", create("other", id, "container", leader, "", none))
		if got := machines(t, h); !slices.Equal(got, []string{"taken"}) && h.Impl == host.Ours {
			t.Errorf("machines: got %v, want [taken]", got)
		}
		if name, text := errorName(call(conn, "KillMachine", "taken", "everybody", int32(9)).Err); name != errInvalidArgs {
			t.Errorf("kill whom: got %q (%s)", name, text)
		}
		if name, text := errorName(call(conn, "KillMachine", "taken", "leader", int32(4711)).Err); name != errInvalidArgs {
			t.Errorf("kill with a bad signal: got %q (%s)", name, text)
		}
		if err := call(conn, "TerminateMachine", "taken").Err; err != nil {
			t.Errorf("terminate: %v", err)
		}
		if h.Impl == host.Ours {
			waitGone(t, h)
			unchanged(t, h, before)
		}
	})
}

// TestBadSpawn: what the spawner refuses names the thing, and leaves nothing.
func TestBadSpawn(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		h.BusyboxTree(t, "noinit")
		h.Shell(t, `cd /var/lib/machines
rm noinit/sbin/init
mkdir -p norelease/usr norelease/etc empty
touch /var/lib/machines/afile
printf '#!/bin/sh\nexit 3\n' >/usr/local/bin/dies; chmod 755 /usr/local/bin/dies`)
		before := snapshot(t, h)
		table := []struct {
			what string
			argv []string
			say  string // in stderr
		}{
			{"missing image by name", []string{"-M", "nope", "true"}, "nope"},
			{"missing directory", []string{"-D", "/nonexistent/tree", "true"}, "/nonexistent/tree"},
			{"a name with a slash", []string{"-M", "../x", "true"}, "../x"},
			{"a name of 65 characters", []string{"-M", strings.Repeat("a", 65), "true"}, "aaaa"},
			{"a leading dot", []string{"-D", "/var/lib/machines/bb", "-M", ".x", "true"}, ".x"},
			{"no init", []string{"-b", "-D", "/var/lib/machines/noinit"}, ""},
			{"no os-release", []string{"-b", "-D", "/var/lib/machines/norelease"}, "os-release"},
			{"an empty tree", []string{"-D", "/var/lib/machines/empty", "true"}, "/usr"},
			{"a tree that is a file", []string{"-D", "/var/lib/machines/afile", "true"}, ""},
			{"an unknown user", []string{"-D", "/var/lib/machines/bb", "-u", "nobody-here", "true"}, "nobody-here"},
			{"a missing command", []string{"-D", "/var/lib/machines/bb", "/no/such/command"}, ""},
			{"an unknown option", []string{"--no-such-option", "-D", "/var/lib/machines/bb"}, "no-such-option"},
			{"an unknown capability", []string{"--capability=CAP_NOPE", "-D", "/var/lib/machines/bb", "true"}, "CAP_NOPE"},
			{"an unknown rlimit", []string{"--rlimit=RLIMIT_NOPE=1", "-D", "/var/lib/machines/bb", "true"}, "NOPE"},
			{"an unknown signal", []string{"--kill-signal=SIGNOPE", "-D", "/var/lib/machines/bb", "true"}, "SIGNOPE"},
			{"a bad uuid", []string{"--uuid=zz", "-D", "/var/lib/machines/bb", "true"}, "zz"},
			{"a bind of nothing", []string{"--bind=/no/such/source", "-D", "/var/lib/machines/bb", "true"}, "/no/such/source"},
			{"a relative bind target", []string{"--bind=/etc:mnt", "-D", "/var/lib/machines/bb", "true"}, "mnt"},
			{"a bad variable", []string{"--setenv=A=B=C\x01=", "--setenv==x", "-D", "/var/lib/machines/bb", "true"}, ""},
			{"a relative chdir", []string{"--chdir=x", "-D", "/var/lib/machines/bb", "true"}, "x"},
			{"bridge and zone", []string{"--network-bridge=br0", "--network-zone=z", "-D", "/var/lib/machines/bb", "true"}, ""},
			{"a missing bridge", []string{"--network-bridge=nobridge", "-D", "/var/lib/machines/bb", "true"}, "nobridge"},
			{"an unknown scope property", []string{"--property=NoSuchThing=1", "-D", "/var/lib/machines/bb", "true"}, "NoSuchThing"},
			{"a bad user range", []string{"--private-users=4294967295:65536", "-D", "/var/lib/machines/bb", "true"}, ""},
		}
		for _, c := range table {
			t.Run(c.what, func(t *testing.T) {
				r := h.Try(append([]string{"systemd-nspawn"}, c.argv...)...)
				if r.Exit <= 0 {
					t.Errorf("%v", r)
				}
				if strings.TrimSpace(r.Stderr) == "" {
					t.Errorf("no message: %v", r)
				}
				if h.Impl == host.Ours && !strings.Contains(r.Stderr, c.say) {
					t.Errorf("message does not name %q: %v", c.say, r)
				}
				if h.Impl == host.Ours {
					unchanged(t, h, before)
				}
			})
		}
		t.Run("start of a missing image", func(t *testing.T) {
			if r := h.Try("machinectl", "start", "nope"); r.Exit == 0 || !strings.Contains(r.Output(), "nope") {
				t.Errorf("%v", r)
			}
		})
		t.Run("payload that dies before it is ready", func(t *testing.T) {
			h.Shell(t, "printf '#!/bin/sh\nexit 3\n' >/var/lib/machines/noinit/sbin/init; chmod 755 /var/lib/machines/noinit/sbin/init")
			r := h.Try("systemd-run", "--wait", "-q", "-p", "Type=notify", "-p", "Delegate=yes", "--", "systemd-nspawn", "-q", "--keep-unit",
				"--notify-ready=yes", "-b", "-D", "/var/lib/machines/noinit")
			if r.Exit == 0 {
				t.Errorf("%v", r)
			}
			h.Try("systemctl", "reset-failed")
			unchanged(t, h, before)
		})
	})
}

// TestHostileTree: what a machine has in its tree never leads the daemon out of it.
func TestHostileTree(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		h.BusyboxTree(t, "bb")
		p := h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "sleep", "1000000")
		waitMachine(t, h, "bb")
		conn := h.Bus(t)
		secret := strings.SplitN(h.MustRun(t, "head", "-n1", "/etc/shadow"), ":", 2)[0]
		for _, c := range []struct{ what, script string }{
			{"a symlink to the host's shadow", "ln -sf /etc/shadow etc/os-release; rm -f usr/lib/os-release"},
			{"a symlink out of the tree", "ln -sf ../../../../../../etc/shadow etc/os-release"},
			{"a symlink through proc", "ln -sf /proc/1/root/etc/shadow etc/os-release"},
			{"a file of 1 GB", "rm -f etc/os-release; truncate -s 1G etc/os-release"},
			{"a pipe that nobody writes to", "rm -f etc/os-release; mkfifo etc/os-release"},
			{"a folder", "rm -f etc/os-release; mkdir etc/os-release"},
		} {
			if h.Impl == host.Stock && strings.HasPrefix(c.what, "a pipe") {
				continue // stock waits for it
			}
			h.Shell(t, "cd /var/lib/machines/bb; "+c.script)
			var release map[string]string
			start := time.Now()
			err := call(conn, "GetMachineOSRelease", "bb").Store(&release)
			if strings.Contains(fmt.Sprint(release, err), secret+":") || release[secret] != "" {
				t.Errorf("%s: the host's file came out: %v %v", c.what, release, err)
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("%s: took %v", c.what, took)
			}
			h.MustRun(t, "machinectl", "list", "--no-pager")
		}
		if h.Impl == host.Ours {
			rss := h.Shell(t, `awk '/VmRSS/ {print $2}' /proc/$(systemctl show -p MainPID --value systemd-machined.service)/status`)
			if kb, _ := strconv.Atoi(strings.TrimSpace(rss)); kb > 100*1024 {
				t.Errorf("the daemon has grown to %d KiB", kb)
			}
		}
		h.MustRun(t, "machinectl", "terminate", "bb")
		p.Wait(t)
		waitGone(t, h)
		unchanged(t, h, before)
	})
}

// TestFullRun: without room for its state a machine is refused whole.
func TestFullRun(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		h.MustRun(t, "machinectl", "list")
		// Only the state files' folder: with /run itself full systemd stops working.
		h.Shell(t, "mkdir -p /run/systemd/machines; mount -t tmpfs -o size=4k,nr_inodes=1 none /run/systemd/machines")
		h.MustRun(t, "systemctl", "restart", "systemd-machined.service")
		before := snapshot(t, h)
		r := h.Try("systemd-nspawn", "-q", "-M", "bb", "true")
		if h.Impl == host.Ours && r.Exit == 0 {
			t.Errorf("registered without a state file: %v", r)
		}
		if h.Impl == host.Ours {
			waitGone(t, h)
			unchanged(t, h, before)
		}
		h.MustRun(t, "umount", "/run/systemd/machines")
		if r := h.Try("systemd-nspawn", "-q", "-M", "bb", "true"); r.Exit != 0 {
			t.Errorf("with room again: %v", r)
		}
	})
}
