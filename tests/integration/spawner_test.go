//go:build integration

package integration

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machined/tests/host"
)

// TestSpawnerConsole has every way to connect a payload's streams, the keys at
// the console and what the exit status says.
func TestSpawnerConsole(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		h.BusyboxTree(t, "bb")
		table := []struct {
			name, script string // $S is the spawner
			exit         int
			out          string
		}{
			{"exit 0", `$S sh -c 'exit 0'`, 0, `^$`},
			{"exit 255", `$S sh -c 'exit 255'`, 255, `^$`},
			{"133 is for reboots", `$S sh -c 'exit 133'`, 1, `^$`},
			{"a signal", `$S --as-pid2 sh -c 'kill -KILL $$'`, 255, `^$`},
			{"pipe", `echo hello | $S --pipe cat`, 0, `^hello$`},
			{"pipe is no terminal", `$S --pipe sh -c tty </dev/null`, 1, `^not a tty$`},
			{"read-only by default", `echo hello | $S sh -c tty`, 0, `^/dev/pts/\d+\r$`},
			{"autopipe", `echo hello | $S --console=autopipe cat`, 0, `^hello$`},
			{"passive", `$S --console=passive sh -c tty </dev/null`, 0, `^/dev/pts/\d+\r$`},
			{"end of input at a console", `echo hello | timeout 20 $S --console=interactive sleep 1000`, 1, `terminated by signal KILL`},
			{"nobody types", `$S --console=interactive sh -c 'echo a; sleep 3; echo b' </dev/null`, 0, `^a\r\nb\r$`},
			{"a file types nothing", `$S --console=interactive sh -c 'echo said' </etc/hostname`, 0, `^said\r$`},
			{"nobody reads", `timeout 20 $S sh -c 'while :; do echo y; done' </dev/null | head -n1; exit ${PIPESTATUS[0]}`, 1, `^y\r$`},
			{"closed stdin", `$S sh -c 'echo said' <&-`, 0, `^said\r$`},
			{"much output", `$S sh -c 'seq 1 50000' | md5sum; seq 1 50000 | sed 's/$/\r/' | md5sum`, 0, `^(\w+)  -\n\w+  -\n$`},
			{"socket activation", `exec 3</etc/hostname; LISTEN_FDS=1 LISTEN_PID=$BASHPID exec $S --pipe sh -c 'echo $LISTEN_FDS $LISTEN_PID; cat <&3'`, 0, `^1 1\n.+$`},
			{"power off", `timeout 20 $S sh -c 'poweroff -f; sleep 100'`, 0, `^$`},
		}
		for _, c := range table {
			t.Run(c.name, func(t *testing.T) {
				r := h.Try("bash", "-c", "S='systemd-nspawn -q -M bb'; "+c.script)
				if r.Exit != c.exit || !regexp.MustCompile("(?m)"+c.out).MatchString(r.Output()) {
					t.Errorf("want exit %d, %q; got %v", c.exit, c.out, r)
				}
				if c.name == "much output" {
					if l := strings.Split(r.Stdout, "\n"); l[0] != l[1] {
						t.Errorf("output differs: %q", l)
					}
				}
			})
		}
		t.Run("keys", func(t *testing.T) {
			p := h.StartTTY(t, "", "systemd-nspawn", "-q", "-M", "bb", "sh", "-c", "stty size; echo up; sleep 1000")
			p.Expect(t, "24 80")
			p.Expect(t, "up")
			start := time.Now()
			p.Send(t, "\x1d\x1d\x1d")
			if got := p.Wait(t); got != 1 || time.Since(start) > 2*time.Second {
				t.Errorf("exit status after ^]^]^]: %d after %v", got, time.Since(start))
			}
		})
		t.Run("signals", func(t *testing.T) {
			p := h.Start(t, "systemd-nspawn", "-M", "bb", "--kill-signal=SIGUSR1", "sh", "-c", "trap 'echo got it' USR1; echo up; while :; do sleep 0.1; done")
			p.Expect(t, "up")
			signalSpawner(t, h, unix.SIGTERM)
			p.Expect(t, "got it")
			signalSpawner(t, h, unix.SIGTERM)
			if got := p.Wait(t); got != 1 {
				t.Errorf("exit status after two SIGTERM: %d", got)
			}
		})
		t.Run("killed", func(t *testing.T) {
			p := h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "-U", "-n", "sh", "-c", "echo up; sleep 1000")
			p.Expect(t, "up")
			signalSpawner(t, h, unix.SIGKILL)
			p.Wait(t)
			host.Eventually(t, 10*time.Second, func() error {
				if r := h.Try("pgrep", "-x", "sleep"); r.Exit == 0 {
					return errors.New(r.String())
				}
				return nil
			})
			h.MustRun(t, "systemd-nspawn", "-q", "-M", "bb", "-U", "-n", "true")
		})
		t.Run("interrupted at any moment", func(t *testing.T) {
			h.Shell(t, `for i in $(seq 40); do
				systemd-nspawn -q -M bb -U -n sleep 1000 </dev/null >/dev/null 2>&1 & pid=$!
				sleep 0.0$((i+9)); kill -TERM $pid; wait $pid && exit 1; machinectl --no-legend list | grep . && exit 2
			done; true`)
		})
		waitGone(t, h)
		unchanged(t, h, before)
	})
}

// signalSpawner signals the only spawner that runs in the host.
func signalSpawner(t *testing.T, h *host.Host, sig unix.Signal) {
	t.Helper()
	h.MustRun(t, "pkill", fmt.Sprintf("-%d", sig), "-o", "-f", "^systemd-nspawn ")
}

// TestSpawnerUnit has a machine restarted and killed as the service that it is.
func TestSpawnerUnit(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		bootMachine(t, h, "deb")
		if got := h.Try("systemctl", "-M", "deb", "--failed", "--no-legend", "--plain"); got.Exit != 0 || strings.TrimSpace(got.Stdout) != "" {
			t.Errorf("failed units in the machine: %v", got)
		}
		id := strings.TrimSpace(h.MustRun(t, "machinectl", "show", "deb", "-p", "Id", "--value"))
		t.Run("reboot", func(t *testing.T) {
			pid := h.MustRun(t, "systemctl", "show", "-p", "MainPID", "--value", "systemd-nspawn@deb.service")
			h.MustRun(t, "machinectl", "reboot", "deb")
			host.Eventually(t, 60*time.Second, func() error {
				if now := h.MustRun(t, "systemctl", "show", "-p", "MainPID", "--value", "systemd-nspawn@deb.service"); now == pid || now == "0\n" {
					return fmt.Errorf("supervisor is %q, was %q", now, pid)
				}
				return nil
			})
			waitRunning(t, h, "deb")
			if now := strings.TrimSpace(h.MustRun(t, "machinectl", "show", "deb", "-p", "Id", "--value")); now != id {
				t.Errorf("id after the reboot: got %s, want %s", now, id)
			}
		})
		t.Run("killed supervisor", func(t *testing.T) {
			leader := strings.TrimSpace(h.MustRun(t, "machinectl", "show", "deb", "-p", "Leader", "--value"))
			h.MustRun(t, "systemctl", "kill", "-s", "KILL", "--kill-whom=main", "systemd-nspawn@deb.service")
			waitGone(t, h)
			host.Eventually(t, 10*time.Second, func() error {
				if r := h.Try("kill", "-0", leader); r.Exit == 0 {
					return errors.New("leader still runs")
				}
				return nil
			})
			h.Try("systemctl", "reset-failed")
			h.MustRun(t, "machinectl", "start", "deb")
			waitRunning(t, h, "deb")
		})
		t.Run("stop of the unit", func(t *testing.T) {
			h.MustRun(t, "systemctl", "stop", "systemd-nspawn@deb.service")
			if got := h.MustRun(t, "systemctl", "show", "-p", "Result", "--value", "systemd-nspawn@deb.service"); got != "success\n" {
				t.Errorf("result of the unit: %q", got)
			}
		})
		waitGone(t, h)
		unchanged(t, h, before)
	})
}

// TestSpawnerNetwork has every kind of link, and ports of the host's led inside.
func TestSpawnerNetwork(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		h.BusyboxTree(t, "bb")
		h.Shell(t, `ip link add dm0 type veth peer name dm1; ip link set dm0 up; ip link set dm1 up; ip link add br9 type bridge; ip link set br9 up; ip netns add other; ip -n other link add inner0 type veth peer name inner1`)
		inside := func(args ...string) string {
			return h.MustRun(t, append(append([]string{"systemd-nspawn", "-q", "-M", "bb", "--pipe"}, args...), "sh", "-c", "ip -o link; echo; ip -o addr")...)
		}
		for _, c := range []struct{ option, want string }{
			{"--private-network", `: lo: .*LOOPBACK,UP`},
			{"--network-veth", `: host0@if\d+: `},
			{"--network-veth-extra=vx-host:vx-in", `: vx-in@if\d+: `},
			{"--network-zone=test", `: host0@if\d+: `},
			{"--network-bridge=br9", `: host0@if\d+: `},
			{"--network-interface=dm0:got0", `: got0@`},
			{"--network-macvlan=dm0", `: mv-dm0@if\d+: `},
			{"--network-ipvlan=dm0:iv0", `: iv0@if\d+: `},
			{"--network-namespace-path=/run/netns/other", `: inner0@`},
		} {
			t.Run(c.option, func(t *testing.T) {
				if strings.Contains(c.option, ":got0") && h.Suite == host.Bookworm && host.DefaultImpl() == host.Stock {
					t.Skip("stock 252 does not rename")
				}
				if kind := regexp.MustCompile("macvlan|ipvlan").FindString(c.option); kind != "" {
					if r := h.Try("sh", "-c", "ip link add link dm0 probe0 type "+kind+" && ip link del probe0"); r.Exit != 0 {
						t.Logf("this kernel has no %s: %s", kind, r.Stderr)
						return
					}
				}
				match(t, inside(c.option), c.want)
				match(t, h.MustRun(t, "ip", "-o", "link"), `: dm0@`) // given back
			})
		}
		t.Run("hardware addresses", func(t *testing.T) {
			if host.DefaultImpl() == host.Stock {
				t.Skip("compares with stock")
			}
			macs := func(spawner string) string {
				return h.Shell(t, spawner+` -q -M bb --pipe -n --network-veth-extra=vx:vx sh -c "ip -o link | sed 's/@.*link.ether//'" | grep -o -e ': [a-z0-9-]* .*:.*' | sed 's/^: //; s/ brd.*//'`)
			}
			if got, want := macs("systemd-nspawn"), macs(h.Stock("systemd-nspawn")); got != want || !strings.Contains(got, "host0") {
				t.Errorf("links: got\n%s\nwant\n%s", got, want)
			}
		})
		t.Run("port", func(t *testing.T) {
			// A networkd of the host would take the addresses away that are given by hand here.
			h.Shell(t, `mkdir -p /run/systemd/network; printf '[Match]\nName=ve-bb o0\n[Link]\nUnmanaged=yes\n' >/run/systemd/network/10-by-hand.network; systemctl try-restart systemd-networkd`)
			p := h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "-n", "--port=tcp:8099:99", "sh", "-c",
				"ip addr add 10.99.0.2/24 dev host0; ip link set host0 up; ip route add default via 10.99.0.1; echo up; while :; do echo answer | nc -l -p 99; done")
			p.Expect(t, "up")
			h.Shell(t, `ip addr add 10.99.0.1/24 dev ve-bb; ip link set ve-bb up`)
			h.Shell(t, `ip netns add out; ip link add o0 type veth peer name o1 netns out; ip addr add 10.98.0.1/24 dev o0; ip link set o0 up
				ip -n out addr add 10.98.0.2/24 dev o1; ip -n out link set o1 up; sysctl -qw net.ipv4.ip_forward=1; ip -n out route add default via 10.98.0.1`)
			for _, client := range []string{"busybox nc 127.0.0.1 8099", "ip netns exec out busybox nc 10.98.0.1 8099"} {
				host.Eventually(t, 15*time.Second, func() error {
					if r := h.Try("sh", "-c", "timeout 2 "+client+" </dev/null"); !strings.Contains(r.Stdout, "answer") {
						return errors.New(r.String())
					}
					return nil
				})
			}
			signalSpawner(t, h, unix.SIGTERM)
			p.Wait(t)
			if r := h.Try("nft", "list", "ruleset"); strings.Contains(r.Stdout, "8099") {
				t.Errorf("rules are left: %s", r.Stdout)
			}
			h.Shell(t, `ip netns del out`)
		})
		h.Shell(t, `ip link del dm0; ip link del br9; ip netns del other; umount -l /run/netns 2>/dev/null || true`)
		waitGone(t, h)
		unchanged(t, h, before)
	})
}
