//go:build integration

package integration

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"machined/tests/host"
)

// TestNspawnTrees boots what people have: Debian 12 and 13, a system without
// systemd, and one with an init and a getent as Alpine has them.
func TestNspawnTrees(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		for _, suite := range host.Suites {
			t.Run(string(suite), func(t *testing.T) {
				name := string(suite)
				h.OSTreeOf(t, suite, name)
				h.MustRun(t, "machinectl", "start", name)
				waitRunning(t, h, name)
				if got := h.Try("systemctl", "-M", name, "is-system-running"); got.Stdout != "running\n" {
					t.Errorf("state: %v%s", got, h.Try("systemctl", "-M", name, "--failed", "--no-legend", "--plain").Stdout)
				}
				h.MustRun(t, "machinectl", "poweroff", name)
				waitGone(t, h)
			})
		}
		t.Run("init of busybox", func(t *testing.T) {
			h.BusyboxTree(t, "alpine")
			h.Shell(t, `cd /var/lib/machines/alpine; rm -f sbin/init usr/bin/getent bin/getent bin/bash; ln -s ../bin/busybox sbin/init
				printf 'ID=alpine\nVERSION_ID=3.20\nNAME="Alpine Linux"\n' >etc/os-release; rm -f usr/lib/os-release; ln -s /bin/busybox bin/ash 2>/dev/null || :
				sed -i '1s,/bin/sh,/bin/ash,' etc/passwd
				printf '::sysinit:/bin/echo system up\n::shutdown:/bin/echo going down\n::once:/bin/sleep 100000\n' >etc/inittab
				cat >usr/bin/getent <<'G'
#!/bin/sh
# musl has no getent; this is the shape of the script that takes its place.
[ $# -ge 2 ] || exit 1
db=$1; shift
case $db in
passwd|group) for key; do grep -m1 -e "^$key:" -e "^[^:]*:[^:]*:$key:" "/etc/$db" || exit 2; done ;;
*) exit 3 ;;
esac
G
				chmod 755 usr/bin/getent`)
			p := h.Start(t, "systemd-nspawn", "-q", "-b", "-M", "alpine", "-U", "-n", "--kill-signal=SIGUSR2")
			p.Expect(t, "system up")
			match(t, h.MustRun(t, "machinectl", "list", "--no-legend"), `^alpine\s+container\s+systemd-nspawn\s+alpine\s+3.20`)
			signalSpawner(t, h, unix.SIGTERM)
			p.Expect(t, "going down")
			if got := p.Wait(t); got != 0 {
				t.Errorf("exit status: %d", got)
			}
			for _, c := range []struct{ args, want string }{
				{"--user=user id", `uid=1000`}, {"--user=1000 id -un", `^user$`}, {"--as-pid2 ash -c 'echo $0'", `^ash$`},
			} {
				if strings.HasPrefix(c.args, "--user") && host.DefaultImpl() == host.Stock {
					continue // it asks such a getent for groups too
				}
				match(t, h.MustRun(t, "sh", "-c", "systemd-nspawn -q --pipe -M alpine "+c.args), c.want)
			}
			waitGone(t, h)
		})
		unchanged(t, h, before)
	})
}

// moreInotify lets root of this machine have more inotify instances during a
// test: each systemd that shares its user namespace takes some ten of the 128.
func moreInotify(t *testing.T) {
	t.Helper()
	const name = "/proc/sys/fs/inotify/max_user_instances"
	old, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(old))); err == nil && n >= 512 {
		return
	}
	if err := os.WriteFile(name, []byte("512"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(name, old, 0); err != nil {
			t.Error(err)
		}
	})
}

// TestNspawnNested runs Debian in a machine in a machine in a machine, each with
// our programs: as the host's root, and each as root of a user namespace.
func TestNspawnNested(t *testing.T) {
	ours(t)
	moreInotify(t)
	for name, options := range map[string][]string{"root": nil, "users": {"-U", "--nesting"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nested(t, options...)
		})
	}
}

func nested(t *testing.T, options ...string) {
	h := host.Boot(t, host.Config{Suite: host.Trixie})
	before := snapshot(t, h)
	h.OSTree(t, "l1")
	h.InstallTree(t, "/var/lib/machines/l1")
	h.Shell(t, `cd /var/lib/machines; cp -a l1 l2; cp -a l1 l3; mkdir -p l2/var/lib/machines l1/var/lib/machines; mv l3 l2/var/lib/machines/; mv l2 l1/var/lib/machines/`)
	// into runs a command in machine l1, l1 and l2, ...
	into := func(level int, args ...string) []string {
		for n := level; n > 0; n-- {
			args = append([]string{"systemd-run", "-q", "-M", "l" + string(rune('0'+n)), "--wait", "--pipe"}, args...)
		}
		return args
	}
	for level := range 3 {
		name := "l" + string(rune('1'+level))
		spawn := append([]string{"systemd-nspawn", "-q", "--keep-unit", "-b", "-M", name, "--private-network"}, options...)
		h.MustRun(t, into(level, append([]string{"systemd-run", "-q", "--unit=" + name, "-p", "Delegate=yes", "-p", "KillMode=mixed"}, spawn...)...)...)
		// Tells when the system is up; its bus comes a moment after the machine.
		r := h.Try(into(level, "sh", "-c", "for i in $(seq 400); do s=$(systemctl -M "+name+" is-system-running 2>/dev/null); case $s in running|degraded) break;; esac; sleep 0.1; done; echo $s; systemctl -M "+name+" --failed --no-legend --plain")...)
		if strings.TrimSpace(r.Stdout) != "running" {
			t.Fatalf("machine %s: %v\n%s", name, r, h.Try(into(level, "journalctl", "-u", name, "-n", "30", "--no-pager")...).Output())
		}
	}
	match(t, h.MustRun(t, into(3, "sh", "-c", "echo container=$(systemd-detect-virt); hostname; ps -p 1 -o comm=")...), `^container=systemd-nspawn$`, `^l3$`, `^systemd$`)
	match(t, h.MustRun(t, into(2, "machinectl", "list", "--no-legend")...), `^l3\s+container\s+systemd-nspawn`)
	if len(options) > 0 {
		match(t, h.MustRun(t, into(3, "cat", "/proc/self/uid_map")...), `^\s+0\s+[1-9]`)
		// What the kernel wants to see complete gives away nothing.
		r := h.Try(into(1, "sh", "-c", "for f in sys/kernel/core_pattern sysrq-trigger sys/vm/drop_caches; do echo 1 >/run/host/nesting/proc/$f; done; ls /run/host/nesting/proc/1/root/etc; setpriv --reuid 1000 --clear-groups ls /run/host/nesting")...)
		if strings.Count(r.Stderr, "cannot create")+strings.Count(r.Stderr, "write error") != 3 || !strings.Contains(r.Stderr, "cannot open directory") {
			t.Errorf("through the complete /proc: %v", r)
		}
	}
	h.MustRun(t, "systemctl", "stop", "l1") // the innermost ends first
	waitGone(t, h)
	h.Try("systemctl", "reset-failed", "l1")
	unchanged(t, h, before)
}
