//go:build integration

package bench

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// other runtimes are shown beside; they promise less than a machine, so there is
// no limit to keep.
const (
	crun  host.Impl = "crun"
	runc  host.Impl = "runc"
	bwrap host.Impl = "bwrap"
)

func command(words string) timedCommand { return timedCommand{Argv: strings.Fields(words)} }

// spawners are runners of the spawner of each kind with the same options.
func spawners(h *host.Host, options string) []runner {
	return []runner{
		{impl: host.Stock, h: h, timedCommand: command(h.Stock("systemd-nspawn") + " " + options)},
		{impl: host.Ours, h: h, timedCommand: command("/usr/bin/systemd-nspawn " + options)},
	}
}

// eachSuite runs a benchmark beside each version of stock.
func eachSuite(b *testing.B, f func(b *testing.B, s host.Suite)) {
	for _, s := range host.Suites {
		b.Run(versions[s], func(b *testing.B) { f(b, s) })
	}
}

const unregistered = "-q --register=no --keep-unit --pipe -D /var/lib/machines/bb "

// BenchmarkSpawn is the time from nothing to `true` in a tiny tree and back.
func BenchmarkSpawn(b *testing.B) {
	eachSuite(b, func(b *testing.B, s host.Suite) {
		h := bench(b, s)
		h.BusyboxTree(b, "bb")
		race(b, of("spawn unregistered", s), 4, 8, spawners(h, unregistered+"true")...)
		race(b, of("spawn with --as-pid2", s), 4, 4, spawners(h, unregistered+"--as-pid2 true")...)
		race(b, of("spawn -U, own network", s), 4, 4, spawners(h, unregistered+"-U --private-network true")...)
		registered := spawners(h, "-q --pipe -D /var/lib/machines/bb true")
		registered[0].ready = func() { h.RunStockDaemon(b) }
		registered[1].ready = func() { h.RunOwnDaemon(b) }
		race(b, of("spawn registered", s), 4, 8, registered...)
	})
}

// What ends a machine here is its init's death: stock's spawner leaves mounts behind
// when it is killed itself.

// BenchmarkBoot is the time from the spawner's start to READY=1 of the Debian
// in the machine.
func BenchmarkBoot(b *testing.B) {
	eachSuite(b, func(b *testing.B, s host.Suite) {
		h := bench(b, s)
		h.OSTree(b, "deb")
		boot := spawners(h, "-q -b --notify-ready=yes --register=no --keep-unit --private-network -U -D /var/lib/machines/deb")
		for i := range boot {
			boot[i].Argv = append(strings.Fields("systemd-run -q --collect --unit=boot -p Type=notify -p NotifyAccess=all -p Delegate=yes"), boot[i].Argv...)
			boot[i].After = `kill -KILL $(pgrep -P "$(systemctl show -p MainPID --value boot)"); until [ "$(systemctl show -p LoadState --value boot)" = not-found ]; do sleep 0.02; done`
		}
		race(b, of("boot of Debian to READY", s), 4, 3, boot...)
	})
}

// gone waits for the end of the unit of machine deb.
const gone = "while systemctl -q is-active systemd-nspawn@deb || machinectl -q show deb >/dev/null 2>&1; do sleep 0.05; done"

// BenchmarkMachinectl is what users wait for: a machine's start, up to READY=1 of the
// Debian in it, a command in a running one, and the program's own start.
func BenchmarkMachinectl(b *testing.B) {
	eachSuite(b, func(b *testing.B, s host.Suite) {
		hosts := pair(b, s)
		both := func(c timedCommand) []runner {
			return []runner{{impl: host.Stock, h: hosts[host.Stock], timedCommand: c}, {impl: host.Ours, h: hosts[host.Ours], timedCommand: c}}
		}
		for _, h := range hosts {
			h.OSTree(b, "deb")
			h.MustRun(b, "machinectl", "list")
		}
		race(b, of("machinectl --version", s), 4, 10, both(command("machinectl --version"))...)
		race(b, of("machinectl list", s), 4, 10, both(command("machinectl list --no-pager"))...)
		start := command("machinectl start deb")
		start.After = "kill -KILL $(machinectl show deb -p Leader --value); " + gone + "; systemctl reset-failed systemd-nspawn@deb 2>/dev/null || :"
		race(b, of("machinectl start", s), 3, 3, both(start)...)
		for _, h := range hosts {
			h.WriteFile(b, "/etc/systemd/nspawn/deb.nspawn", "[Exec]\nNotifyReady=yes\n", 0o644)
		}
		race(b, of("machinectl start to READY", s), 3, 3, both(start)...)
		for _, h := range hosts {
			h.MustRun(b, "machinectl", "start", "deb")
		}
		race(b, of("machinectl shell", s), 3, 5, both(command("machinectl -q shell deb /bin/true"))...)
		// What stock has for scripts is the shell, whose status is lost.
		exec := both(command("machinectl -q shell deb /bin/true"))
		exec[1].timedCommand = command("machinectl exec deb /bin/true")
		race(b, of("machinectl exec, beside stock's shell", s), 3, 5, exec...)
		for _, h := range hosts {
			h.Shell(b, "machinectl terminate deb; "+gone)
		}
	})
}

// BenchmarkOthers is `true` in the same tree by programs that do less.
func BenchmarkOthers(b *testing.B) {
	h := bench(b, host.Bookworm)
	tree := h.BusyboxTree(b, "bb")
	h.Shell(b, `mkdir -p /var/tmp/bundle && cd /var/tmp/bundle && crun spec && sed -i 's/"terminal": true/"terminal": false/; s/"sh"/"true"/; s|"path": "rootfs"|"path": "`+tree+`"|' config.json`)
	runners := spawners(h, unregistered+"true")
	for impl, c := range map[host.Impl]timedCommand{
		// Its cgroup manager wants to lock memory without a limit, for which a host in namespaces has no right.
		crun:  command("crun --cgroup-manager=disabled run -b /var/tmp/bundle c"),
		runc:  command("runc run -b /var/tmp/bundle r"),
		bwrap: command("bwrap --bind " + tree + " / --proc /proc --dev /dev --unshare-pid --unshare-ipc --unshare-uts true"),
	} {
		if r := h.Try(c.Argv...); r.Exit != 0 {
			b.Logf("%s does not run here: %s", impl, r.Stderr)
			continue
		}
		runners = append(runners, runner{impl: impl, h: h, timedCommand: c})
	}
	race(b, "true beside others", 4, 8, runners...)
}

// idle is how long a machine has run when its supervisor's memory is looked at.
const idle = 4 * time.Second

// BenchmarkMemory reports memory, and no time: the idle daemon's RSS and the
// PSS of the spawner that stands by an idle machine.
func BenchmarkMemory(b *testing.B) {
	h := bench(b, host.Bookworm)
	const rssLimit = 20 * 1024
	for _, impl := range []host.Impl{host.Stock, host.Ours} {
		if impl == host.Stock {
			h.RunStockDaemon(b)
		} else {
			h.RunOwnDaemon(b)
		}
		h.MustRun(b, "machinectl", "list")
		kib := rss(b, h)
		record("daemon RSS", "KiB", impl, kib)
		if impl == host.Ours && kib > rssLimit {
			b.Errorf("idle daemon: %v KiB, at most %d", kib, rssLimit)
		}
	}
	for i, r := range spawners(h, "") {
		name := fmt.Sprintf("idle%d", i)
		h.BusyboxTree(b, name)
		h.Start(b, r.Argv[0], "-q", "-M", name, "sleep", "1000000")
		host.Eventually(b, 20*time.Second, func() error {
			if r := h.Try("machinectl", "show", name, "-p", "Leader", "--value"); r.Exit != 0 {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
		// Idle is who has had nothing to do for a while. The supervisor is the leader's parent.
		time.Sleep(idle)
		record("supervisor PSS", "KiB", r.impl, number(b, h.Shell(b, `leader=$(machinectl show `+name+` -p Leader --value)
awk '/^Pss:/ {print $2}' /proc/$(ps -o ppid= -p $leader | tr -d ' ')/smaps_rollup`)))
	}
}
