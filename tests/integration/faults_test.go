//go:build integration

package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// faultVariant is one way to start a machine, whose steps fail one by one.
type faultVariant struct {
	name, args string
	clean      string // takes away what a start that works leaves on purpose
	service    bool   // by machinectl start, with args after those of the template
}

var faultVariants = []faultVariant{
	{name: "directory", args: "-M bb true"},
	{name: "users", args: "-U -M bb --private-network true"},
	{name: "image", args: "-i /var/lib/machines/img.raw true"},
	{name: "ephemeral", args: "-x -M bb true"},
	{name: "template", args: "--template=/var/lib/machines/bb -D /var/lib/machines/made true", clean: "rm -rf /var/lib/machines/made"},
	{name: "volatile", args: "-M bb --volatile=overlay --bind=/usr/share:/mnt/b --tmpfs=/mnt/t --overlay=+/etc:/var/tmp/up:/mnt/o true"},
	{name: "veth and ports", args: "-M bb -n -p tcp:18180:80 --as-pid2 sh -c 'ip addr add 192.0.2.7/24 dev host0; sleep 0.1'"},
	{name: "zone", args: "-U -M bb --network-zone=fz --network-veth-extra=fx0:fx1 true"},
	{name: "interface", args: "-M bb --network-interface=fi0:in0 --network-macvlan=fm0 true"},
	{name: "service", service: true, args: "sleep 0.1", clean: noJournals},
	{name: "service of an image", service: true, args: "-i /var/lib/machines/img.raw --private-users=no --notify-ready=no --bind=/usr/share:/home/user sleep 0.1", clean: noJournals},
	{name: "journal and user", args: "-M bb --link-journal=guest -u user --set-credential=a:b --notify-ready=no id", clean: noJournals},
}

// noJournals removes the links to journals of machines whose ID is another each time.
const noJournals = "find /var/log/journal -type l -delete"

// TestFaults has the calls of the spawner fail, and kills it and the daemon at
// them, one by one: each time there is an answer, and nothing is left behind.
// MACHINED_TEST_FAULTS=all tries every call, a number as many of each start.
func TestFaults(t *testing.T) {
	ours(t)
	h := host.Boot(t, host.Config{Suite: host.Bookworm})
	h.Compile(t, "testdata/faults.c", "/usr/local/bin/faults", "-static")
	tree := h.BusyboxTree(t, "bb")
	h.Shell(t, fmt.Sprintf(`mkdir -p /var/log/journal /var/tmp/up
ip link add fi0 type veth peer name fi1; ip link add fm0 type veth peer name fm1; ip link set fm0 up
mksquashfs %[1]s /var/lib/machines/img.raw -quiet -no-progress -comp gzip >/dev/null
mkdir -p /run/systemd/nspawn`, tree))
	// The same samples each time, so that a run says something of the change; `make faults` takes every call.
	f := faults{h: h, rnd: rand.New(rand.NewPCG(1, 0)), samples: 3}
	if n, err := strconv.Atoi(os.Getenv("MACHINED_TEST_FAULTS")); err == nil {
		f.samples = n
	} else if os.Getenv("MACHINED_TEST_FAULTS") == "all" {
		f.samples = 1 << 20
	}
	for _, v := range faultVariants {
		t.Run(v.name, func(t *testing.T) { f.variant(t, v) })
	}
}

type faults struct {
	h       *host.Host
	rnd     *rand.Rand
	samples int
}

// faultKinds are what happens at a call.
var faultKinds = []string{"5", "12", "kill", "kill:system.slice/systemd-machined.service"} // 5 is EIO, 12 ENOMEM

// variant goes through the calls of one way to start.
func (f faults) variant(t *testing.T, v faultVariant) {
	var before string
	calls := 0
	for range 2 { // the first may make what stays: tables of nftables, /run/systemd/nspawn
		exit, n, at, out := f.run(v, 0, "0")
		if exit != 0 || n < 30 {
			t.Fatalf("without a fault: exit %d, %d calls (%s): %s", exit, n, at, out)
		}
		if calls > 0 {
			f.same(t, before, "without a fault")
		}
		before, calls = f.state(t), n
	}
	samples := min(f.samples, calls)
	for _, kind := range faultKinds {
		for i := range samples {
			// Every call, or one of each part of the start.
			number := i*calls/samples + 1 + f.rnd.IntN(calls/samples)
			exit, _, at, out := f.run(v, number, kind)
			what := fmt.Sprintf("%s at call %d of %d, %s", kind, number, calls, at)
			if problem := f.judge(kind, at, exit, out); problem != "" {
				t.Errorf("%s: %s (exit %d):\n%s", what, problem, exit, out)
			}
			// Nobody was left to clean up, or a call of the cleaning failed: the next start does it.
			if kind == "kill" || exit == 0 && at != "nothing" {
				if exit, _, _, out := f.run(v, 0, "0"); exit != 0 {
					t.Errorf("start after %s: exit %d: %s", what, exit, out)
				}
			}
			f.same(t, before, what)
		}
	}
}

// run starts the machine with one fault, and returns its exit status, how many
// calls there were, which one failed, and what the spawner said.
func (f faults) run(v faultVariant, number int, kind string) (exit, calls int, at, out string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	start := fmt.Sprintf("faults /run/faults.report %d %s systemd-nspawn -q --console=pipe %s >/dev/null; e=$?", number, kind, v.args)
	if v.service {
		start = fmt.Sprintf(startFaultyService, number, kind, v.args)
	}
	r := f.h.Run(ctx, "bash", "-c", "exec </dev/null; rm -f /run/faults.report; "+start+"; cat /run/faults.report; "+v.clean+"\nexit $e")
	count, at, _ := strings.Cut(strings.TrimSpace(r.Stdout), " ")
	calls, _ = strconv.Atoi(count)
	return r.Exit, calls, at, r.Stderr
}

// startFaultyService starts bb as a service that differs from the template in who
// executes the spawner, waits for its end, and takes its exit status and words from it.
// machinectl's own answer does not count: it has none when the daemon is killed.
const startFaultyService = `
d=/run/systemd/system/systemd-nspawn@bb.service.d; mkdir -p $d
cat >$d/faults.conf <<E
[Unit]
StartLimitIntervalSec=0
[Service]
NotifyAccess=all
WatchdogSec=0
StandardError=truncate:/run/faults.err
ExecStart=
ExecStart=/usr/local/bin/faults /run/faults.report %d %s systemd-nspawn --quiet --keep-unit --link-journal=try-guest --network-veth -U --settings=override --machine=%%i %s
E
systemctl daemon-reload
machinectl start bb >/dev/null 2>&1
until [ -e /run/faults.report ] && ! systemctl -q is-active systemd-nspawn@bb && [ "$(systemctl show -P ActiveState systemd-nspawn@bb)" != deactivating ]; do sleep 0.02; done
e=$(systemctl show -P ExecMainStatus systemd-nspawn@bb); systemctl reset-failed systemd-nspawn@bb 2>/dev/null
rm -r $d; systemctl daemon-reload; cat /run/faults.err >&2`

// judge tells what is wrong with how the spawner has ended.
func (f faults) judge(kind, at string, exit int, out string) string {
	var lines []string
	for line := range strings.Lines(out) {
		if !strings.Contains(line, "ignoring") { // what is optional may be missing, which is said
			lines = append(lines, line)
		}
	}
	switch {
	case at == "nothing" && exit == 0: // this start took fewer calls
		return ""
	case strings.Contains(out, "goroutine ") || strings.Contains(out, "panic"):
		return "it crashed"
	case kind == "kill":
		return ""
	case exit == 0: // it could do without
		return ""
	case exit != 1:
		return "exit status is not 1"
	case len(lines) != 1:
		return "not one line"
	}
	return ""
}

// state is everything of the host that a start could leave.
func (f faults) state(t *testing.T) string {
	t.Helper()
	return snapshot(t, f.h) + f.h.Shell(t, `
nft list ruleset 2>/dev/null | grep -e dnat -e 192.0.2 | sed 's/^/nft /' || true
for l in /sys/block/loop*/loop/backing_file; do grep -s machines/img.raw $l | sed 's/^/loop /'; done
find /run/systemd/machines /run/systemd/nspawn -not -path '*/locks*' -printf 'run %p\n' 2>/dev/null || true
find /var/lib/machines /var/tmp -maxdepth 1 -printf 'file %p\n'
find /var/log/journal -mindepth 1 -maxdepth 1 -type l -printf 'journal %p\n'
find /var/lib/machines/bb -name '.#*' -printf 'image %p\n'
ps -eo args | grep -e '[s]d-stubinit' -e '[s]d-getent' -e '[s]d-launch' | sed 's/^/process /' || true
`)
}

// same fails when something is left.
func (f faults) same(t *testing.T, before, what string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		after := f.state(t)
		left, gone := linesOnlyIn(after, before), linesOnlyIn(before, after)
		if left == "" && gone == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: left behind:\n%sgone:\n%s", what, left, gone)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
