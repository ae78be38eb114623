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

// badStart is a start that can't work, or that a hostile image wants to go wrong.
type badStart struct {
	name string
	// script prepares (in /var/lib/machines/bad, a tree), args are the spawner's.
	script, args string
	exit         int    // 1, or 0 where it does no harm
	say          string // pattern in what ours says
	after        string // takes back what script did outside of the tree
}

var badStarts = []badStart{
	{name: "an empty name is none", args: `-M '' -D /var/lib/machines/bad true`},
	{name: "a name of dots", args: `-M .. -D /var/lib/machines/bad true`, exit: 1, say: `machine name.*\.\.`},
	{name: "a root that a machine has", script: `systemd-nspawn -q --register=no -D $PWD sleep 20 & for i in $(seq 100); do pgrep -x sleep >/dev/null && break; sleep 0.05; done`, args: `-D /var/lib/machines/bad -M other true`, exit: 1, say: `^Directory tree .*/bad is currently busy\.$`, after: `kill $(jobs -p); wait`},
	{name: "a template that is missing", args: `--template=/var/lib/machines/none -D /var/lib/machines/made true`, exit: 1, say: `/var/lib/machines/none`},
	{name: "a port that is taken", script: `python3 -m http.server -b 0.0.0.0 8999 >/dev/null 2>&1 & for i in $(seq 100); do ss -ltn | grep -q :8999 && break; sleep 0.05; done`, args: `-D /var/lib/machines/bad -n -p tcp:8999:80 true`, exit: 1, say: `8999`, after: `kill $(jobs -p); wait`},
	{name: "an interface that is missing", args: `--network-interface=none0 -D /var/lib/machines/bad true`, exit: 1, say: `none0`},
	{name: "a parent that is missing", args: `--network-macvlan=none0 -D /var/lib/machines/bad true`, exit: 1, say: `none0`},
	{name: "a range that ends beyond all IDs", args: `--private-users=4294901760:131072 -D /var/lib/machines/bad true`, exit: 1, say: `.`},
	{
		name: "out of UID ranges", exit: 1, say: `^Failed to pick suitable UID/GID range: no free UID range$`, after: `cp -a /root/passwd /etc/passwd`,
		// All that there are belong to users of the host.
		script: `cp -a /etc/passwd /root/passwd; awk 'BEGIN { for (b = 524288; b <= 1879048192; b += 65536) printf "r%d:x:%d:1::/:/bin/false\n", b, b }' >>/etc/passwd`,
		args:   `-D /var/lib/machines/bad -U -n --bind=:/mnt true`,
	},
	{
		name: "no room for a copy of a template", exit: 1, say: `No space left on device$`, after: `ls -A /var/tmp/full | grep -v fill >/var/tmp/left; umount /var/tmp/full; rmdir /var/tmp/full`,
		script: `mkdir -p /var/tmp/full; mount -t tmpfs -o size=1M tmpfs /var/tmp/full; cat /dev/zero >/var/tmp/full/fill`,
		args:   `--template=/var/lib/machines/bad -D /var/tmp/full/made true`,
	},
	{name: "a loop of links for /etc", script: `mv etc etc2; ln -s etc etc`, args: `-D /var/lib/machines/bad -U true`},
	{name: "a loop of links for /run", script: `rm -rf run; ln -s b run; ln -s run b`, args: `-D /var/lib/machines/bad true`, exit: 1, say: `run.*too many levels of symbolic links|run.*ELOOP`},
	{name: "a loop of links for /usr", script: `rm -rf usr; ln -s usr usr`, args: `-D /var/lib/machines/bad true`, exit: 1, say: `/usr`},
	{name: "a file for /dev", script: `rm -rf dev; touch dev`, args: `-D /var/lib/machines/bad true`, exit: 1, say: `dev`},
	{name: "a file for /proc", script: `rm -rf proc; touch proc`, args: `-D /var/lib/machines/bad true`, exit: 1, say: `proc`},
	{name: "a file for /tmp", script: `rm -rf tmp; touch tmp`, args: `-D /var/lib/machines/bad true`, exit: 1, say: `tmp`},
	{name: "a pipe for /etc/machine-id", script: `rm -f etc/machine-id; mkfifo etc/machine-id`, args: `-D /var/lib/machines/bad true`},
	{name: "a machine-id of 1 GB", script: `rm -f etc/machine-id; truncate -s 1G etc/machine-id`, args: `-D /var/lib/machines/bad true`},
	{name: "os-release leads to the host's shadow", script: `rm -f usr/lib/os-release; ln -sf /etc/shadow etc/os-release`, args: `-D /var/lib/machines/bad -b`, exit: 1, say: `os-release file is missing`},
	{name: "os-release of 1 GB", script: `rm -f etc/os-release usr/lib/os-release; truncate -s 1G etc/os-release`, args: `-D /var/lib/machines/bad -b`},
	{name: "os-release is a pipe", script: `rm -f etc/os-release usr/lib/os-release; mkfifo etc/os-release`, args: `-D /var/lib/machines/bad -b`},
	{name: "getent that never ends its line", script: `printf '#!/bin/sh\nexec cat /dev/zero\n' >usr/bin/getent; printf '#!/bin/sh\nexec head -c 100000000 /dev/zero\n' >usr/bin/getent`, args: `-D /var/lib/machines/bad -u user true`, exit: 1, say: `[Ff]ailed to resolve user user|user`},
	{name: "getent that lies", script: `printf '#!/bin/sh\necho a:b:c\n' >usr/bin/getent`, args: `-D /var/lib/machines/bad -u user true`, exit: 1, say: `user`},
	{name: "a user of too high a number", script: `printf '#!/bin/sh\necho user:x:99999999999:1::/:/bin/sh\n' >usr/bin/getent`, args: `-D /var/lib/machines/bad -u user true`, exit: 1, say: `user`},
	{name: "an init that is a folder", script: `rm sbin/init; mkdir sbin/init`, args: `-D /var/lib/machines/bad -b`, exit: 1, say: `init`},
	{name: "an init of no format", script: `head -c 4096 /dev/urandom >sbin/init`, args: `-D /var/lib/machines/bad -b`, exit: 1, say: `init`},
	{name: "a command that nobody may execute", script: `touch bin/locked; chmod 644 bin/locked`, args: `-D /var/lib/machines/bad /bin/locked`, exit: 1, say: `locked.*Permission denied`},
	{
		name: "no room for an ephemeral copy", exit: 1, say: `No space left`, after: `umount /var/tmp/full; rmdir /var/tmp/full`,
		script: `mkdir -p /var/tmp/full; mount -t tmpfs -o size=4M tmpfs /var/tmp/full; mkdir -p /var/tmp/full/tree/{usr,bin,etc}; cp bin/busybox /var/tmp/full/tree/bin/sh; cat /dev/zero >/var/tmp/full/fill; true`,
		args:   `-x -D /var/tmp/full/tree sh -c 'echo x >/grown'`,
	},
	{name: "no room in /run/systemd/nspawn", script: `mkdir -p /run/systemd/nspawn; mount -t tmpfs -o nr_inodes=1 tmpfs /run/systemd/nspawn`, args: `-D /var/lib/machines/bad true`, exit: 1, say: `no space left on device`, after: `umount /run/systemd/nspawn`},
	{name: "a disk image of nothing", script: `truncate -s 10M /var/tmp/none.raw`, args: `-i /var/tmp/none.raw true`, exit: 1, say: `none\.raw`, after: `rm /var/tmp/none.raw`},
	{name: "a disk image that ends in the midst", script: `mke2fs -q -t ext4 -d etc /var/tmp/cut.raw 8M 2>/dev/null || mkfs.ext4 -q /var/tmp/cut.raw 8M; truncate -s 1M /var/tmp/cut.raw`, args: `-i /var/tmp/cut.raw true`, exit: 1, say: `cut\.raw|image|mount`, after: `rm /var/tmp/cut.raw`},
}

// TestBadStarts: each is answered in one line with exit status 1, or does no harm, and leaves nothing.
func TestBadStarts(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		h.Shell(t, "systemd-nspawn -q -M bb -n -p tcp:8998:80 true; mkdir -p /run/systemd/nspawn")
		before := snapshot(t, h)
		for _, c := range badStarts {
			t.Run(c.name, func(t *testing.T) {
				if h.Impl == host.Stock && strings.Contains(c.name, "pipe") {
					t.Skip("stock waits for it")
				}
				r := h.Try("bash", "-c", fmt.Sprintf(`exec </dev/null; rm -rf /var/lib/machines/bad; cp -a --reflink=auto /var/lib/machines/bb /var/lib/machines/bad; cd /var/lib/machines/bad
printf '#!/bin/sh\nexit 0\n' >sbin/init
{ :; %s
} >/dev/null 2>&1; timeout 60 systemd-nspawn -q --register=no --console=pipe %s; e=$?; { :; %s
} >/dev/null 2>&1; exit $e`, c.script, c.args, c.after))
				defer h.Shell(t, "rm -rf /var/lib/machines/bad")
				if h.Impl == host.Stock {
					t.Logf("stock: exit %d: %s", r.Exit, r.Stderr)
					return
				}
				if r.Exit != c.exit {
					t.Errorf("want exit %d, got %d: %s", c.exit, r.Exit, r.Stderr)
				}
				if c.exit == 0 {
					return
				}
				if !regexp.MustCompile("(?mi)" + c.say).MatchString(r.Stderr) {
					t.Errorf("no match of %q: %s", c.say, r.Stderr)
				}
				var lines int
				for line := range strings.Lines(r.Stderr) {
					if !strings.Contains(line, "ignoring") {
						lines++
					}
				}
				if lines != 1 {
					t.Errorf("%d lines: %s", lines, r.Stderr)
				}
			})
		}
		if h.Impl == host.Ours {
			unchanged(t, h, before)
		}
	})
}

// TestChangingImage swaps folders of an image for links that lead out of it,
// while machines start on it.
func TestChangingImage(t *testing.T) {
	ours(t)
	h := host.Boot(t, host.Config{Suite: host.Bookworm})
	makeOutside(t, h)
	h.Shell(t, "chmod -R 777 /outside; mkdir -p /outside/host /outside/log/journal /var/log/journal")
	before := snapshot(t, h)
	had := listing(t, h)
	rounds := raceRounds(t) / 20
	for _, name := range []string{"run", "dev", "proc", "sys", "etc", "tmp", "var", "var/log", "mnt"} {
		tree := h.BusyboxTree(t, "ch")
		h.Shell(t, fmt.Sprintf("cd %s; mkdir -p $(dirname %[2]s) %[2]s; ln -s /outside elsewhere", tree, name))
		inTree := func(p string) string { return filepath.Join(h.Machines(), "ch", p) }
		s := swap(inTree(name), inTree("elsewhere"))
		worked := 0
		for i := range rounds {
			flags := []string{"-U", "--link-journal=host", "--volatile=overlay"}[i%3]
			ctx := time.Now()
			r := h.Try("systemd-nspawn", "-q", "--register=no", "-M", "ch", flags, "--resolv-conf=copy-host", "--timezone=copy",
				"--bind=/usr/share/zoneinfo:/mnt/zone", "--tmpfs=/var/lib/t", "--console=pipe", "true")
			if r.Exit == 0 {
				worked++
			}
			if r.Exit > 1 || r.Exit < 0 || time.Since(ctx) > 20*time.Second {
				t.Errorf("%s, %s: %v", name, flags, r)
			}
		}
		s.end(t)
		t.Logf("%s: %d of %d starts worked", name, worked, rounds)
		if now := listing(t, h); now != had {
			t.Fatalf("%s: the host's files have changed:\n%s", name, linesOnlyIn(now, had))
		}
		h.Shell(t, "rm -rf /var/lib/machines/ch")
	}
	unchanged(t, h, before)
}
