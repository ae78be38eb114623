//go:build integration

package integration

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// libvirtScript does what libvirt does to a guest that it starts and ends.
const libvirtScript = `import sys, dbus
name, service, klass, leader, ifindex = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
bus = dbus.SystemBus()
names = [str(n) for n in bus.list_activatable_names()]
assert "org.freedesktop.machine1" in names, names
manager = dbus.Interface(bus.get_object("org.freedesktop.machine1", "/org/freedesktop/machine1", introspect=False), "org.freedesktop.machine1.Manager")
props = dbus.Array([("Slice", "machine.slice"), ("After", dbus.Array(["libvirtd.service", "virtqemud.service"], signature="s")),
    ("Before", dbus.Array(["virt-guest-shutdown.target"], signature="s"))], signature="(sv)")
uuid = dbus.Array([dbus.Byte(b) for b in bytes(range(16))], signature="y")
path = manager.CreateMachineWithNetwork(name, uuid, service, klass, dbus.UInt32(leader), "", dbus.Array([ifindex] if ifindex else [], signature="i"), props)
unit = "machine-" + name.replace("-", "\\x2d") + ".scope"
systemd = dbus.Interface(bus.get_object("org.freedesktop.systemd1", "/org/freedesktop/systemd1", introspect=False), "org.freedesktop.systemd1.Manager")
systemd.SetUnitProperties(unit, True, dbus.Array([("CPUWeight", dbus.UInt64(200))], signature="(sv)"))
found = manager.GetMachineByPID(dbus.UInt32(leader))
assert found == path, (found, path)
get = dbus.Interface(bus.get_object("org.freedesktop.machine1", found, introspect=False), "org.freedesktop.DBus.Properties")
print("name", get.Get("org.freedesktop.machine1.Machine", "Name"))
print("unit", get.Get("org.freedesktop.machine1.Machine", "Unit"))
assert get.Get("org.freedesktop.machine1.Machine", "Unit") == unit
print("listed", [(str(m[0]), str(m[1]), str(m[2])) for m in manager.ListMachines() if m[0] == name])
manager.TerminateMachine(name)
`

// TestLibvirtSequence: a guest of libvirt's registers, is listed as what it is,
// and ends; a second end is NoSuchMachine and nothing else.
func TestLibvirtSequence(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.WriteFile(t, "/libvirt.py", libvirtScript, 0o644)
		before := snapshot(t, h)
		for _, c := range []struct{ name, service, class, ifindex string }{
			{"qemu-1-web", "libvirt-qemu", "vm", "1"}, {"lxc-7-db", "libvirt-lxc", "container", "0"},
		} {
			p := h.Start(t, "sleep", "1000000")
			pid := ""
			host.Eventually(t, 5*time.Second, func() error {
				r := h.Try("pgrep", "-n", "-x", "sleep")
				pid = strings.TrimSpace(r.Stdout)
				return exitError(r)
			})
			out := h.MustRun(t, "python3", "/libvirt.py", c.name, c.service, c.class, pid, c.ifindex)
			match(t, out, `^listed \[\('`+c.name+`', '`+c.class+`', '`+c.service+`'\)\]$`)
			p.Wait(t) // terminated
			waitGone(t, h)
			host.Eventually(t, 5*time.Second, func() error {
				r := h.Try("busctl", "call", busName, busPath, managerIf, "TerminateMachine", "s", c.name)
				if r.Exit == 0 || !strings.Contains(r.Stderr, "No machine '"+c.name+"' known") {
					return errors.New(r.String())
				}
				return nil
			})
		}
		unchanged(t, h, before)
	})
}

// TestNeighbours: what stands beside machinectl and asks the daemon, or reads
// its files, on a machine with a network of its own.
func TestNeighbours(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		bootMachine(t, h, "deb")
		leader := strings.TrimSpace(h.MustRun(t, "machinectl", "show", "deb", "-p", "Leader", "--value"))
		for _, c := range []struct{ script, want string }{
			{"systemd-cgls -M deb --no-pager", `init\.scope`},
			{"systemd-cgtop -M deb -b -n 1", `deb`},
			{"systemctl -M root@deb is-system-running", `running|degraded`},
			{"loginctl -M deb list-users --no-pager", `users? listed|USER`},
			{"busctl -M deb status org.freedesktop.systemd1", `(?i)pid=1`},
			{"id vu-deb-0 2>/dev/null || getent passwd vu-deb-0", `vu-deb-0`},
			{"getent passwd $(stat -c %u /proc/" + leader + ")", `vu-deb-0`},
			{"getent group vg-deb-0", `vg-deb-0`},
			{"ps -o machine= -p " + leader, `^deb$`},
			{"journalctl -M deb -b --no-pager -n 5 -q", `\w`},
			{"systemctl list-machines --no-pager", `^. deb +running|^deb +running`},
			{"systemctl -M deb show -P Version --no-pager", `^25[27]`},
			{"timedatectl -M deb show -p Timezone", `=.*UTC`},
			{"localectl -M deb status --no-pager", `System Locale`},
			{"systemd-analyze -M deb time --no-pager", `Startup finished`},
			{"systemd-run -M deb -q --pipe --wait sh -c 'cat; exit 0' <<<through", `^through$`},
			{"systemd-run -M deb -q --pipe --wait sh -c 'exit 7'; test $? = 7 && echo seven", `^seven$`},
			{"script -qec \"machinectl -q shell deb /bin/sh -c 'tty; id -un'\" /dev/null", `^root`},
			{"systemd-run -M root@deb -q --wait --pipe id -un", `^root$`},
			{"busctl -M deb call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.DBus.Peer GetMachineId", `^s "[0-9a-f]{32}"`},
			{"systemd-cgls --no-pager -u systemd-nspawn@deb.service", `payload`},
		} {
			t.Run(c.script, func(t *testing.T) {
				r := h.Try("bash", "-c", c.script)
				if r.Exit != 0 {
					t.Fatal(r)
				}
				match(t, r.Output(), c.want)
			})
		}
		t.Run("names", func(t *testing.T) { resolves(t, h) })
		if h.Suite == host.Bookworm {
			return // what follows came with later versions, or works since; systemd-run --pty of 252 gives up without a word
		}
		t.Run("a terminal", func(t *testing.T) {
			p := h.StartTTY(t, "", "systemd-run", "-M", "deb", "-q", "--pty", "sh", "-c", "tty; read x; echo got $x")
			p.Expect(t, "/dev/pts/")
			p.Send(t, "this\n")
			p.Expect(t, "got this")
			if exit := p.Wait(t); exit != 0 {
				t.Errorf("exit %d: %s", exit, p.Output())
			}
		})
		for _, c := range []struct{ script, want string }{
			{"varlinkctl list-interfaces /run/systemd/machine/io.systemd.Machine", `^io.systemd.MachineImage$`},
			{"varlinkctl list-methods /run/systemd/machine/io.systemd.Machine io.systemd.MachineImage 2>&1", `\.Clone$`},
			{"varlinkctl validate-idl <(varlinkctl introspect /run/systemd/machine/io.systemd.Machine io.systemd.Machine) && echo valid", `^valid$`},
		} {
			t.Run(c.script, func(t *testing.T) {
				r := h.Try("bash", "-c", c.script)
				if r.Exit != 0 {
					t.Fatal(r)
				}
				match(t, r.Output(), c.want)
			})
		}
		t.Run("varlinkctl", func(t *testing.T) {
			out := h.MustRun(t, "varlinkctl", "call", "/run/systemd/machine/io.systemd.Machine", "io.systemd.Machine.List", `{"name":"deb"}`)
			match(t, out, `"class"\s*:\s*"container"`, `"service"\s*:\s*"systemd-nspawn"`)
			match(t, h.MustRun(t, "varlinkctl", "introspect", "/run/systemd/machine/io.systemd.Machine", "io.systemd.Machine"), `^method Register`)
		})
		t.Run("ssh machine/NAME", func(t *testing.T) {
			// 257's proxy asks the daemon, and then wants a vsock; containers are for its successors.
			for name, want := range map[string]string{"deb": `no AF_VSOCK CID`, "nope": `(?i)no such|NoSuchMachine|not found|unknown`} {
				r := h.Try("/usr/lib/systemd/systemd-ssh-proxy", "machine/"+name, "22")
				if r.Exit == 0 {
					t.Errorf("%v", r)
				}
				match(t, r.Output(), want)
			}
		})
	})
}

// resolves has programs of all kinds find the machine by its name.
func resolves(t *testing.T, h *host.Host) {
	var address string
	routable := regexp.MustCompile(`(?m)^((?:169\.254|192\.168|10|172)\.[0-9.]+)\s`)
	host.Eventually(t, 40*time.Second, func() error { // networkd in the machine takes a moment
		r := h.Try("getent", "ahosts", "deb")
		m := routable.FindStringSubmatch(r.Stdout)
		if m == nil {
			return errors.New(r.String())
		}
		address = m[1]
		// Duplicate address detection may be slower than DHCP on a busy machine.
		if r := h.Try("sh", "-c", "getent ahostsv6 deb | grep fe80::"); r.Exit != 0 {
			return errors.New(r.String())
		}
		return exitError(h.Try("ping", "-c", "1", "-W", "1", address))
	})
	h.MustRun(t, "machinectl", "copy-to", "deb", "/bin/busybox", "/usr/local/bin/busybox")
	h.MustRun(t, "systemd-run", "-M", "deb", "-q", "--unit=web", "/usr/local/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/etc")
	h.Shell(t, "cp /usr/bin/getent /usr/local/bin/setuid-getent; chmod u+s /usr/local/bin/setuid-getent")
	h.CompileGo(t, "testdata/cgoresolve", "/usr/local/bin/cgoresolve")
	if h.Suite == host.Bookworm { // a static program wants the very C library that it was linked with
		h.Compile(t, "testdata/storm.c", "/usr/local/bin/static-storm", "-static-pie", "-Wl,--no-warnings")
	} else {
		h.Compile(t, "testdata/storm.c", "/usr/local/bin/static-storm")
	}
	for _, c := range []struct{ user, script, want string }{
		{"", "getent ahostsv4 deb", regexp.QuoteMeta(address)},
		{"", "getent ahostsv6 deb", `^fe80::`}, // stock's answer, as it asks for the canonical name
		{"", "getent ahosts deb", `^fe80::[0-9a-f:]+%\d+ `},
		{"alice", "/usr/local/bin/cgoresolve deb", regexp.QuoteMeta(address)},
		{"alice", "/usr/local/bin/cgoresolve " + address, `^deb$`},
		{"", "/usr/local/bin/static-storm 4 100 deb", `found 100 `},
		{"", "getent hosts deb", `\bdeb\b`},
		{"", "getent hosts DEB", `(?i)\bdeb\b`},
		{"", "getent hosts deb.", `\bdeb\b`},
		{"", "getent hosts " + address, regexp.QuoteMeta(address) + `\s+deb$`},
		{"alice", "getent ahosts deb", regexp.QuoteMeta(address)},
		{"alice", "/usr/local/bin/setuid-getent ahosts deb", regexp.QuoteMeta(address)},
		{"alice", "python3 -c 'import socket; print(sorted({a[4][0] for a in socket.getaddrinfo(\"deb\", 80)}))'", regexp.QuoteMeta(address)},
		{"alice", "python3 -c 'import socket; print(socket.gethostbyaddr(\"" + address + "\")[0])'", `^deb$`},
		{"", "ping -c 1 -W 2 deb", `1 received`},
		{"", "/bin/busybox ping -c 1 -W 2 deb", `1 packets received`}, // a static program
	} {
		t.Run(c.script, func(t *testing.T) {
			var r host.Result
			if c.user == "" {
				r = h.Try("bash", "-c", c.script)
			} else {
				r = h.TryAs(c.user, "bash", "-c", c.script)
			}
			if r.Exit != 0 {
				t.Fatal(r)
			}
			match(t, r.Output(), c.want)
		})
	}
	host.Eventually(t, 20*time.Second, func() error { // until the server listens
		r := h.Try("curl", "-sf", "--max-time", "3", "http://deb/debian_version")
		if r.Exit != 0 || strings.TrimSpace(r.Stdout) == "" {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	for _, name := range []string{"nope", "deb.invalid", ".deb", strings.Repeat("x", 300)} {
		if r := h.Try("getent", "hosts", name); r.Exit != 2 {
			t.Errorf("getent hosts %.20q: exit %d, want 2", name, r.Exit)
		}
	}
}
