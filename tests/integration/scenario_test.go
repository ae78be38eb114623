//go:build integration

package integration

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// TestScenario walks one Debian machine from start to end, in the words that
// stock's tools print.
func TestScenario(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		bootMachine(t, h, "deb")

		t.Run("list", func(t *testing.T) {
			for name, client := range clients(h) {
				t.Run(name, func(t *testing.T) {
					out := h.MustRun(t, client, "list", "--no-pager")
					match(t, out, `^MACHINE +CLASS +SERVICE +OS +VERSION +ADDRESSES`,
						`^deb +container +systemd-nspawn +debian +`+version(h.Suite)+`\b`, `^1 machines listed\.$`)
					legend := h.MustRun(t, client, "list", "--no-legend", "--no-pager")
					if n := strings.Count(strings.TrimSpace(legend), "deb "); n != 1 || strings.Contains(legend, "listed") {
						t.Errorf("list --no-legend: got %q", legend)
					}
				})
			}
		})
		t.Run("status", func(t *testing.T) {
			for name, client := range clients(h) {
				t.Run(name, func(t *testing.T) {
					match(t, h.MustRun(t, client, "status", "deb", "--no-pager"),
						`^deb\([0-9a-f]{32}\)$`,
						`^\s+Since: .* ago$`, `^\s+Leader: \d+ \(systemd\)$`, `^\s+Service: systemd-nspawn; class container$`,
						`^\s+Root: /var/lib/machines/deb$`, `^\s+Iface: ve-deb$`, `^\s+OS: Debian GNU/Linux `+version(h.Suite),
						`^\s+UID Shift: \d+$`, `^\s+Unit: systemd-nspawn@deb\.service$`, `payload$`, `supervisor$`)
				})
			}
		})
		t.Run("show", func(t *testing.T) {
			for name, client := range clients(h) {
				t.Run(name, func(t *testing.T) {
					match(t, h.MustRun(t, client, "show", "deb"), `^Name=deb$`, `^Class=container$`, `^Service=systemd-nspawn$`,
						`^Unit=systemd-nspawn@deb\.service$`, `^RootDirectory=/var/lib/machines/deb$`, `^State=running$`, `^Id=[0-9a-f]{32}$`)
					if got := h.MustRun(t, client, "show", "deb", "-p", "State", "--value"); got != "running\n" {
						t.Errorf("show -p State --value: got %q", got)
					}
				})
			}
		})
		t.Run("unit", func(t *testing.T) {
			out := h.MustRun(t, "systemctl", "status", "--no-pager", "--full", "systemd-nspawn@deb.service")
			match(t, out, `Active: active \(running\)`, `Status: "Container running: (Startup finished|Ready)`,
				`CGroup: /machine\.slice/systemd-nspawn@deb\.service`, `├─payload`, `└─supervisor`)
		})
		t.Run("stock clients in the machine", func(t *testing.T) { stockTransports(t, h, "deb") })
		t.Run("shell", func(t *testing.T) {
			for name, client := range clients(h) {
				t.Run(name, func(t *testing.T) {
					p := h.StartTTY(t, "", client, "shell", "deb", "/bin/sh", "-c", "echo it is $((6*7)) here; tty; id -un")
					p.Expect(t, "Connected to machine deb. Press ^] three times within 1s to exit session.")
					p.Expect(t, "it is 42 here")
					p.Expect(t, "/dev/pts/")
					p.Expect(t, "root")
					p.Expect(t, "Connection to machine deb terminated.")
					if got := p.Wait(t); got != 0 {
						t.Errorf("exit status: got %d", got)
					}
				})
			}
		})
		t.Run("login", func(t *testing.T) {
			for name, client := range clients(h) {
				t.Run(name, func(t *testing.T) {
					p := h.StartTTY(t, "", client, "login", "deb")
					p.Expect(t, "Connected to machine deb. Press ^] three times within 1s to exit session.")
					p.Expect(t, "login:")
					p.Send(t, "\x1d\x1d\x1d")
					p.Expect(t, "Connection to machine deb terminated.")
					p.Wait(t)
				})
			}
		})
		t.Run("busy", func(t *testing.T) {
			r := h.Try("systemd-nspawn", "-M", "deb", "-a", "ls", "/")
			if r.Exit == 0 || !strings.Contains(r.Stderr, "currently busy") {
				t.Errorf("second start of an image: %v", r)
			}
		})
		t.Run("poweroff", func(t *testing.T) {
			h.MustRun(t, "machinectl", "poweroff", "deb")
			waitGone(t, h)
			unchanged(t, h, before)
		})
		t.Run("terminate", func(t *testing.T) {
			for name, client := range clients(h) {
				t.Run(name, func(t *testing.T) {
					h.MustRun(t, client, "start", "deb")
					waitRunning(t, h, "deb")
					h.MustRun(t, client, "terminate", "deb")
					waitGone(t, h)
					unchanged(t, h, before)
				})
			}
		})
		t.Run("stock poweroff", func(t *testing.T) {
			h.MustRun(t, h.Stock("machinectl"), "start", "deb")
			waitRunning(t, h, "deb")
			h.MustRun(t, h.Stock("machinectl"), "poweroff", "deb")
			waitGone(t, h)
			unchanged(t, h, before)
		})
	})
}

// stockTransports uses every stock program that reaches into a machine.
func stockTransports(t *testing.T, h *host.Host, name string) {
	table := []struct {
		argv []string
		want string
	}{
		{[]string{"systemctl", "-M", name, "list-units", "--no-pager", "--no-legend"}, `dbus\.service`},
		{[]string{"systemctl", "-M", name, "is-system-running"}, `running`},
		{[]string{"systemctl", "list-machines", "--no-legend", "--no-pager"}, `\b` + name + `\b`},
		{[]string{"journalctl", "-M", name, "--no-pager", "-n", "200"}, `systemd\[1\]`},
		{[]string{"busctl", "-M", name, "list", "--no-legend", "--no-pager"}, `org\.freedesktop\.systemd1`},
		{[]string{"systemd-run", "-M", name, "--pipe", "--wait", "-q", "sh", "-c", "cat /run/host/container-manager"}, `^systemd-nspawn$`},
		{[]string{"loginctl", "-M", name, "list-sessions", "--no-pager"}, `session`},
		{[]string{"hostnamectl", "-M", name}, `Chassis: container`},
		{[]string{"systemd-cgls", "-M", name, "--no-pager"}, `payload`},
	}
	for _, c := range table {
		t.Run(c.argv[0]+" "+c.argv[len(c.argv)-1], func(t *testing.T) {
			r := h.Try(c.argv...)
			if r.Exit != 0 {
				t.Fatal(r)
			}
			match(t, r.Output(), c.want)
		})
	}
	t.Run("getent hosts", func(t *testing.T) {
		// networkd in the machine takes a moment.
		host.Eventually(t, 30*time.Second, func() error {
			if r := h.Try("getent", "ahosts", name); r.Exit != 0 || !regexp.MustCompile(`^(169\.254|192\.168|10\.|172\.|fe80)`).MatchString(r.Stdout) {
				return errors.New(r.String())
			}
			return nil
		})
	})
}

// TestStockSpawner has stock's spawner register at the daemon, with a scope of
// its own and in the unit it runs in.
func TestStockSpawner(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) { spawnerRegisters(t, h, h.Stock("systemd-nspawn")) })
}

// TestSpawner does the same with the installed spawner.
func TestSpawner(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) { spawnerRegisters(t, h, "systemd-nspawn") })
}

// TestSpawnerAtStock has our spawner register at stock's daemon.
func TestSpawnerAtStock(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.RunStockDaemon(t)
		spawnerRegisters(t, h, "systemd-nspawn")
	})
}

func spawnerRegisters(t *testing.T, h *host.Host, spawner string) {
	before := snapshot(t, h)
	h.BusyboxTree(t, "bb")
	t.Run("scope", func(t *testing.T) {
		p := h.Start(t, spawner, "-q", "-M", "bb", "-U", "--network-veth", "sleep", "1000000")
		waitMachine(t, h, "bb")
		match(t, h.MustRun(t, h.Stock("machinectl"), "show", "bb"), `^Unit=machine-bb\.scope$`, `^Class=container$`, `^State=running$`)
		match(t, h.MustRun(t, "systemctl", "show", "machine-bb.scope", "-p", "Slice,ActiveState,Delegate"), `^Slice=machine\.slice$`, `^ActiveState=active$`, `^Delegate=yes$`)
		h.MustRun(t, h.Stock("machinectl"), "terminate", "bb")
		p.Wait(t)
		waitGone(t, h)
		unchanged(t, h, before)
	})
	t.Run("keep unit", func(t *testing.T) {
		h.MustRun(t, "systemd-run", "--unit=keeper", "-p", "Delegate=yes", "--", spawner, "-q", "-M", "bb", "--keep-unit", "sleep", "1000000")
		waitMachine(t, h, "bb")
		match(t, h.MustRun(t, "machinectl", "show", "bb"), `^Unit=keeper\.service$`)
		h.MustRun(t, "machinectl", "terminate", "bb")
		waitGone(t, h)
		h.Try("systemctl", "reset-failed", "keeper.service")
		unchanged(t, h, before)
	})
	t.Run("exit status", func(t *testing.T) {
		if r := h.Try(spawner, "-q", "-M", "bb", "--pipe", "sh", "-c", "echo said; exit 7"); r.Exit != 7 || r.Stdout != "said\n" {
			t.Errorf("command mode: %v", r)
		}
		waitGone(t, h)
		unchanged(t, h, before)
	})
}

// waitMachine waits until a machine is registered and its scope job is done.
func waitMachine(t *testing.T, h *host.Host, name string) {
	t.Helper()
	host.Eventually(t, 30*time.Second, func() error {
		r := h.Try(h.Stock("machinectl"), "show", name, "-p", "State", "--value")
		if strings.TrimSpace(r.Stdout) != "running" {
			return errors.New(r.String())
		}
		return nil
	})
}
