//go:build integration

package integration

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

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
		t.Run("musl", func(t *testing.T) { muslTree(t, h) })
		unchanged(t, h, before)
	})
}

// muslTree boots a tree with musl in the place of glibc: busybox's init runs
// levels as Alpine's does, of programs that want musl's loader.
func muslTree(t *testing.T, h *host.Host) {
	loaders, _ := filepath.Glob("/lib/ld-musl-*.so.1")
	if _, err := exec.LookPath("musl-gcc"); err != nil || len(loaders) == 0 {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal("no musl-gcc: install musl-tools")
		}
		t.Skip("no musl-gcc")
	}
	tree := h.BusyboxTree(t, "musl")
	who := filepath.Join(t.TempDir(), "who")
	if out, err := exec.Command("musl-gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", who, "testdata/tell.c").CombinedOutput(); err != nil {
		t.Fatalf("compile: %v\n%s", err, out)
	}
	loader, err := filepath.EvalSymlinks(loaders[0])
	if err != nil {
		t.Fatal(err)
	}
	h.CopyIn(t, who, tree+"/usr/bin/tell")
	h.CopyIn(t, loader, tree+loaders[0])
	h.Shell(t, `cd `+tree+`; rm -f sbin/init; ln -s ../bin/busybox sbin/init; mkdir -p etc/runlevels
		printf 'ID=alpine\nVERSION_ID=3.20\nNAME="Alpine Linux"\n' >etc/os-release; rm -f usr/lib/os-release
		printf '#!/bin/sh\necho "level $1: $(tell)"\n[ "$1" != default ] || { mount | grep -q " / " && touch /run/up; }\n' >sbin/openrc; chmod 755 sbin/openrc
		printf '::sysinit:/sbin/openrc sysinit\n::wait:/sbin/openrc boot\n::wait:/sbin/openrc default\n::once:/bin/sleep 100000\n::shutdown:/sbin/openrc shutdown\n' >etc/inittab`)
	for _, flags := range []string{"", "-U -n", "--read-only", "--volatile=state -U", "-x"} {
		p := h.Start(t, append([]string{"systemd-nspawn", "-q", "-b", "-M", "musl", "--kill-signal=SIGUSR2"}, strings.Fields(flags)...)...)
		for _, level := range []string{"sysinit", "boot", "default"} {
			p.Expect(t, "level "+level+": root on musl as process ")
		}
		signalSpawner(t, h, unix.SIGTERM)
		p.Expect(t, "level shutdown: ")
		if got := p.Wait(t); got != 0 {
			t.Errorf("%q: exit status %d: %s", flags, got, p.Output())
		}
	}
	match(t, h.MustRun(t, "systemd-nspawn", "-q", "--pipe", "-U", "-M", "musl", "tell"), `^root on musl as process 1$`)
	waitGone(t, h)
}

// TestNspawnBoots has systemd come up whole in each kind of root and network:
// no unit has failed.
func TestNspawnBoots(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.OSTree(t, "deb")
		h.OSTree(t, "state")
		before := snapshot(t, h)
		boots := map[string]string{
			"plain": "-x", "users": "-x -U", "veth": "-x -U -n", "zone": "-x -U --network-zone=bz", "private": "-x --private-network",
			"readonly": "--read-only --tmpfs=/var --private-network", "yes": "--volatile=yes -U systemd.firstboot=no", "state": "--volatile=state -U -n", "overlay": "--volatile=overlay -n",
			"quiet": "--volatile=overlay -U --console=pipe --link-journal=no",
		}
		for name, flags := range boots {
			tree := "/var/lib/machines/deb"
			if name == "state" { // it takes the tree for itself
				tree = "/var/lib/machines/state"
			}
			h.MustRun(t, append([]string{"systemd-run", "-q", "--unit=b-" + name, "-p", "Type=notify", "-p", "Delegate=yes", "-p", "KillMode=mixed", "-p", "TasksMax=infinity",
				"systemd-nspawn", "-q", "--keep-unit", "-b", "-D", tree, "-M", name}, strings.Fields(flags)...)...)
		}
		for name, flags := range boots {
			if name == "yes" {
				// Debian's bus does not start without its users in /etc; the rest does.
				host.Eventually(t, 60*time.Second, func() error {
					if r := h.Try("journalctl", "-u", "b-yes", "--no-pager"); !strings.Contains(r.Stdout, "Reached target basic.target") {
						return errors.New(r.Stdout)
					}
					return nil
				})
				continue
			}
			waitRunning(t, h, name)
			if got := h.Try("systemctl", "-M", name, "is-system-running"); got.Stdout != "running\n" {
				t.Errorf("%s (%s): %s%s", name, flags, got.Stdout, h.Try("systemctl", "-M", name, "--failed", "--no-legend", "--plain").Stdout)
			}
		}
		for name := range boots {
			h.Try("systemctl", "stop", "b-"+name)
		}
		h.Try("systemctl", "reset-failed")
		waitGone(t, h)
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
