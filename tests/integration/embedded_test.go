//go:build integration

package integration

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// embedded is a system without systemd as PID 1 and without a system bus: a PID,
// mount, network and cgroup namespace within a test host, whose /run is empty.
type embedded struct {
	h   *host.Host
	pid string // of its init, in the host
}

// embeddedInit makes the system, and then takes the place of its init.
const embeddedInit = `mount --make-rprivate /
umount -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /sys/fs/cgroup/rest; echo 1 >/sys/fs/cgroup/rest/cgroup.procs
mount -t tmpfs tmpfs /run; mkdir -p /run/lock; ip link set lo up
echo up; while :; do sleep 1; done`

func newEmbedded(t *testing.T, h *host.Host) *embedded {
	t.Helper()
	p := h.Start(t, "sh", "-c", `mkdir /sys/fs/cgroup/embedded; echo $$ >/sys/fs/cgroup/embedded/cgroup.procs
exec unshare --cgroup --mount --net --pid --fork --mount-proc --kill-child sh -c '`+embeddedInit+`'`)
	p.Expect(t, "up")
	return &embedded{h: h, pid: strings.TrimSpace(h.Shell(t, "pgrep -P $(pgrep -x unshare)"))}
}

// in is a command that enters the system and its cgroup.
func (e *embedded) in(script string) []string {
	return []string{"nsenter", "-t", e.pid, "-a", "bash", "-c", "echo $$ >/sys/fs/cgroup/rest/cgroup.procs; unset DBUS_SYSTEM_BUS_ADDRESS; " + script}
}

func (e *embedded) try(script string) host.Result { return e.h.Try(e.in(script)...) }

// must runs a script that has to succeed, and whose output has to match.
func (e *embedded) must(t *testing.T, script string, patterns ...string) string {
	t.Helper()
	r := e.try(script)
	if r.Exit != 0 {
		t.Fatal(r)
	}
	match(t, r.Stdout, patterns...)
	return r.Stdout
}

// daemon starts machined and waits until it answers.
func (e *embedded) daemon(t *testing.T) *host.Process {
	t.Helper()
	p := e.h.Start(t, e.in("exec /usr/lib/systemd/systemd-machined")...)
	host.Eventually(t, 20*time.Second, func() error { return exitError(e.try("machinectl list")) })
	return p
}

// gone waits until a machine is not there any more, nor its spawner, which holds the image.
func (e *embedded) gone(t *testing.T, name string) {
	t.Helper()
	host.Eventually(t, 30*time.Second, func() error {
		if r := e.try("machinectl show -p State " + name); r.Exit == 0 {
			return fmt.Errorf("%s is still there: %v", name, r)
		}
		if r := e.try("pgrep -a -f -- --machine=" + name + "$"); r.Exit == 0 {
			return fmt.Errorf("its spawner is still there: %v", r)
		}
		return nil
	})
}

// state is what machines could leave behind.
func (e *embedded) state(t *testing.T) string {
	t.Helper()
	return e.must(t, `find /run/systemd/machines /run/machined/units /run/machined/binds -mindepth 1 2>/dev/null; find /sys/fs/cgroup/machine.slice -mindepth 1 -type d
ip -o link | cut -d: -f2; cut -d' ' -f5 /proc/1/mountinfo; pgrep -a 'machine-spawn|nspawn'; true`)
}

// TestEmbedded takes machines through their life where there is no systemd:
// machined keeps the cgroups and the bus itself.
func TestEmbedded(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.OSTree(t, "deb")
		h.BusyboxTree(t, "bb")
		e := newEmbedded(t, h)
		daemon := e.daemon(t)
		before := e.state(t)
		leader := func(name string) string { return e.must(t, "machinectl show -p Leader --value "+name, `^\d+$`) }

		e.must(t, "machinectl list-images --no-pager", `^bb +directory`, `^deb +directory`)
		e.must(t, "machinectl start deb bb && machinectl list --no-pager", `^bb +container +systemd-nspawn +busybox`, `^deb +container +systemd-nspawn +debian`)
		host.Eventually(t, 40*time.Second, func() error {
			return exitError(e.try("machinectl -q shell deb /bin/systemctl is-system-running --wait </dev/null"))
		})
		e.must(t, "machinectl status deb --no-pager", `^\s+Unit: systemd-nspawn@deb\.service$`, `payload`, `supervisor`, `^\s+OS: Debian`)
		e.must(t, "machinectl -q shell deb /bin/cat /proc/1/comm </dev/null", `systemd`)
		e.must(t, "echo hello >/tmp/hello; machinectl copy-to deb /tmp/hello /root/hello && machinectl copy-from deb /root/hello /tmp/back && cat /tmp/back", `^hello$`)
		e.must(t, "mkdir /tmp/dir; echo bound >/tmp/dir/file; machinectl bind --mkdir deb /tmp/dir /mnt/dir; machinectl list-binds deb", `^/mnt/dir +/tmp/dir`)
		e.must(t, "machinectl -q shell deb /bin/cat /mnt/dir/file </dev/null", `bound`)
		e.must(t, "machinectl unbind deb /mnt/dir")

		parent := t // of the daemons, which outlive the parts of the test
		t.Run("the daemon is killed", func(t *testing.T) {
			want := e.must(t, "machinectl list --no-pager --no-legend; machinectl show -p Leader -p Unit deb bb")
			e.must(t, "pkill -KILL -x systemd-machine")
			daemon.Wait(t)
			daemon = e.daemon(parent)
			if got := e.must(t, "machinectl list --no-pager --no-legend; machinectl show -p Leader -p Unit deb bb"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			// What ended while nobody looked, and what ends afterwards.
			pid := strings.TrimSpace(leader("bb"))
			e.must(t, "pkill -KILL -x systemd-machine; kill -KILL "+pid)
			daemon.Wait(t)
			daemon = e.daemon(parent)
			e.gone(t, "bb")
			e.must(t, "machinectl start bb && kill -KILL $(machinectl show -p Leader --value bb)")
			e.gone(t, "bb")
		})
		t.Run("reboot and poweroff", func(t *testing.T) {
			first := leader("deb")
			e.must(t, "machinectl reboot deb")
			host.Eventually(t, 40*time.Second, func() error {
				if r := e.try("machinectl show -p Leader --value deb"); r.Exit != 0 || r.Stdout == first {
					return fmt.Errorf("not rebooted: %v", r)
				}
				return nil
			})
			host.Eventually(t, 40*time.Second, func() error { return exitError(e.try("machinectl -q shell deb /bin/true </dev/null")) })
			e.must(t, "machinectl poweroff deb")
			e.gone(t, "deb")
		})
		t.Run("images and transfers", func(t *testing.T) {
			e.must(t, "machinectl clone bb cc && machinectl read-only cc true && machinectl image-status cc --no-pager", `RO: read-only`)
			e.must(t, "machinectl read-only cc false; machinectl export-tar cc /tmp/cc.tar.gz && machinectl import-tar /tmp/cc.tar.gz dd && machinectl start dd && machinectl kill -s KILL dd")
			e.gone(t, "dd")
			e.must(t, "machinectl rename dd ee && machinectl remove cc ee && machinectl list-images --no-pager", `^2 images listed`)
		})
		t.Run("what cannot be", func(t *testing.T) {
			h.Shell(t, `cp -a /var/lib/machines/bb /var/lib/machines/dies; printf '#!/bin/sh\necho last words\nexit 3\n' >/var/lib/machines/dies/sbin/init`)
			e.must(t, "machinectl start bb")
			for script, want := range map[string]string{
				"machinectl start nope":             `nope.*does not exist`,
				"machinectl shell bb":               `(?i)bb.*bus`,
				"machinectl remove bb":              `(?i)busy`,
				"machinectl set-limit bb 1G":        `(?i)not supported`,
				"machinectl --user list":            `XDG_RUNTIME_DIR`,
				"machinectl bind nope /tmp":         `nope`,
				"/usr/lib/systemd/systemd-machined": `another machined is running`,
			} {
				r := e.try(script)
				if r.Exit == 0 || !regexp.MustCompile(want).MatchString(r.Stderr) {
					t.Errorf("want failure and %q: %v", want, r)
				}
			}
			e.must(t, "machinectl terminate bb")
			e.gone(t, "bb")
			e.try("machinectl start dies")
			e.gone(t, "dies")
		})
		t.Run("enabled, and the daemon ends", func(t *testing.T) {
			e.must(t, "machinectl enable bb && machinectl start deb && pkill -TERM -x systemd-machine")
			daemon.Wait(t)
			match(t, daemon.Output(), `go on.*machines=1`)
			daemon = e.daemon(parent)
			host.Eventually(t, 20*time.Second, func() error {
				if r := e.try("machinectl list --no-pager"); !strings.Contains(r.Stdout, "bb ") || !strings.Contains(r.Stdout, "deb ") {
					return fmt.Errorf("%v", r)
				}
				return nil
			})
			e.must(t, "machinectl disable bb && machinectl kill -s KILL bb deb")
			e.gone(t, "deb")
			e.gone(t, "bb")
		})
		host.Eventually(t, 20*time.Second, func() error {
			if added := linesOnlyIn(e.state(t), before); added != "" {
				return fmt.Errorf("left behind:\n%s", added)
			}
			return nil
		})
		e.must(t, "pkill -TERM -x systemd-machine")
		daemon.Wait(t)
		if out := e.must(t, "pgrep -a dbus-daemon; ls "+filepath.Join("/run/machined", "bus")+" 2>&1; true"); strings.Contains(out, "/run/machined/bus.conf") {
			t.Errorf("the private bus is left: %s", out)
		}
	})
}
