//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/tests/host"
)

// faultVariant is one way to start a machine, whose steps fail one by one.
type faultVariant struct {
	name, args string // IMAGE is the path of an image without its suffix
	clean      string // a pattern of what a start that works leaves on purpose
	service    bool   // by machinectl start, with args after those of the template
	ports      bool   // rules of nftables are a part of it
}

// journals are links to journals of machines whose ID is another each time.
const journals = "/var/log/journal/*"

var faultVariants = []faultVariant{
	{name: "directory", args: "-M bb true"},
	{name: "users", args: "-U -M bb --private-network true"},
	{name: "image", args: "-i IMAGE.raw true"},
	{name: "ephemeral", args: "-x -M bb true"},
	{name: "template", args: "--template=/var/lib/machines/bb -D /var/lib/machines/made true", clean: "/var/lib/machines/made"},
	{name: "volatile", args: "-M bb --volatile=overlay --bind=/usr/share:/mnt/b --tmpfs=/mnt/t --overlay=+/etc:/var/tmp/up:/mnt/o true"},
	{name: "veth and ports", args: "-M bb -n -p tcp:18180:80 --as-pid2 sh -c 'ip addr add 192.0.2.7/24 dev host0; sleep 0.1'", ports: true},
	{name: "zone", args: "-U -M bb --network-zone=fz --network-veth-extra=fx0:fx1 true"},
	{name: "interface", args: "-M bb --network-interface=fi0:in0 --network-macvlan=fm0 true"},
	{name: "service", service: true, args: "sleep 0.1", clean: journals},
	{name: "service of an image", service: true, args: "-i IMAGE.raw --private-users=no --notify-ready=no --bind=/usr/share:/home/user sleep 0.1", clean: journals},
	{name: "journal and user", args: "-M bb --link-journal=guest -u user --set-credential=a:b --notify-ready=no id", clean: journals},
}

// TestFaults has the calls of the spawner fail, and kills it and the daemon at
// them, one by one: each time there is an answer, and nothing is left behind.
// MACHINED_TEST_FAULTS=all tries every call, a number as many of each start; then
// two hosts share the work.
func TestFaults(t *testing.T) {
	ours(t)
	// The same samples each time, so that a run says something of the change; `make faults` takes every call.
	samples, hosts := 3, 1
	if n, err := strconv.Atoi(os.Getenv("MACHINED_TEST_FAULTS")); err == nil {
		samples = n
	} else if os.Getenv("MACHINED_TEST_FAULTS") == "all" {
		samples, hosts = 1<<20, 2
	}
	free := make(chan *faults, hosts)
	for range hosts {
		free <- newFaults(t, samples)
	}
	for _, v := range faultVariants {
		t.Run(v.name, func(t *testing.T) {
			if hosts > 1 {
				t.Parallel()
			}
			f := <-free
			defer func() { free <- f }()
			f.variant(t, v)
		})
	}
}

// faults is one host in which starts fail.
type faults struct {
	h       *host.Host
	systemd godbus.BusObject
	conn    *godbus.Conn
	image   string // in the pool, without its suffix
	samples int
}

func newFaults(t *testing.T, samples int) *faults {
	h := host.Boot(t, host.Config{Suite: host.Bookworm})
	h.Compile(t, "testdata/faults.c", "/usr/local/bin/faults", "-static")
	tree := h.BusyboxTree(t, "bb")
	// Of another name in each host, as all see all loop devices.
	f := &faults{h: h, conn: h.Bus(t), image: "img-" + h.Name, samples: samples}
	f.systemd = f.conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
	h.Shell(t, fmt.Sprintf(`mkdir -p /var/log/journal /var/tmp/up
ip link add fi0 type veth peer name fi1; ip link add fm0 type veth peer name fm1; ip link set fm0 up
mksquashfs %s /var/lib/machines/%s.raw -quiet -no-progress -comp gzip >/dev/null
mkdir -p /run/systemd/nspawn`, tree, f.image))
	return f
}

// faultKinds are what happens at a call.
var faultKinds = []string{"5", "12", "kill", "kill:system.slice/systemd-machined.service"} // 5 is EIO, 12 ENOMEM

// variant goes through the calls of one way to start.
func (f *faults) variant(t *testing.T, v faultVariant) {
	v.args = strings.ReplaceAll(v.args, "IMAGE", "/var/lib/machines/"+f.image)
	if v.service {
		f.service(t, v)
	}
	var before string
	calls := 0
	for range 2 { // the first may make what stays: tables of nftables, /run/systemd/nspawn
		exit, n, at, out := f.run(t, v, 0, "0")
		if exit != 0 || n < 30 {
			t.Fatalf("without a fault: exit %d, %d calls (%s): %s", exit, n, at, out)
		}
		if calls > 0 {
			f.same(t, v, before, "without a fault")
		}
		before, calls = f.state(t, v), n
	}
	samples := min(f.samples, calls)
	rnd := rand.New(rand.NewPCG(1, 0))
	starts, began := 0, time.Now()
	for _, kind := range faultKinds {
		for i := range samples {
			// Every call, or one of each part of the start.
			number := i*calls/samples + 1 + rnd.IntN(calls/samples)
			exit, _, at, out := f.run(t, v, number, kind)
			starts++
			what := fmt.Sprintf("%s at call %d of %d, %s", kind, number, calls, at)
			if problem := f.judge(kind, at, exit, out); problem != "" {
				t.Errorf("%s: %s (exit %d):\n%s", what, problem, exit, out)
			}
			// Nobody was left to clean up, or a call of the cleaning failed: the next start does it.
			if kind == "kill" || exit == 0 && at != "nothing" {
				if exit, _, _, out := f.run(t, v, 0, "0"); exit != 0 {
					t.Errorf("start after %s: exit %d: %s", what, exit, out)
				}
				starts++
			}
			before = f.same(t, v, before, what)
		}
	}
	t.Logf("%d calls, %d starts in %v", calls, starts, time.Since(began).Round(time.Second))
}

// Files of the host between it and this test.
const (
	faultReport = "/run/faults.report"
	faultInput  = "/run/faults.env"
	faultWords  = "/run/faults.err"
)

// run starts the machine with one fault, and returns its exit status, how many
// calls there were, which one failed, and what the spawner said.
func (f *faults) run(t *testing.T, v faultVariant, number int, kind string) (exit, calls int, at, out string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := os.Remove(f.h.Path(faultReport)); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if v.service {
		exit, out = f.runService(ctx, t, number, kind)
	} else {
		r := f.h.Run(ctx, "bash", "-c", fmt.Sprintf("exec faults %s %d %s systemd-nspawn -q --console=pipe %s </dev/null >/dev/null", faultReport, number, kind, v.args))
		exit, out = r.Exit, r.Stderr
	}
	report, err := os.ReadFile(f.h.Path(faultReport))
	if err != nil {
		t.Fatalf("%s at call %d: %v; exit %d: %s", kind, number, err, exit, out)
	}
	count, at, _ := strings.Cut(strings.TrimSpace(string(report)), " ")
	calls, _ = strconv.Atoi(count)
	if v.clean != "" {
		made, _ := filepath.Glob(f.h.Path(v.clean))
		for _, path := range made {
			if v.clean != journals || isLink(path) {
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return exit, calls, at, out
}

func isLink(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.Mode()&os.ModeSymlink != 0
}

// The service of bb differs from the template in who executes the spawner.
const (
	faultyName    = "systemd-nspawn@bb.service"
	faultyService = `[Unit]
StartLimitIntervalSec=0
[Service]
NotifyAccess=all
WatchdogSec=0
EnvironmentFile=` + faultInput + `
StandardError=truncate:` + faultWords + `
ExecStart=
ExecStart=/usr/local/bin/faults ` + faultReport + ` ${FAULT_NUMBER} ${FAULT_KIND} systemd-nspawn --quiet --keep-unit --link-journal=try-guest --network-veth -U --settings=override --machine=%i `
)

func (f *faults) service(t *testing.T, v faultVariant) {
	t.Helper()
	dir := "/run/systemd/system/" + faultyName + ".d"
	f.h.WriteFile(t, dir+"/faults.conf", faultyService+v.args+"\n", 0o644)
	f.h.MustRun(t, "systemctl", "daemon-reload")
	t.Cleanup(func() { f.h.MustRun(t, "sh", "-c", "rm -r "+dir+"; systemctl daemon-reload") })
}

// runService starts it, waits for its end, and takes its exit status and words.
// machinectl's own answer does not count: it has none when the daemon is killed.
func (f *faults) runService(ctx context.Context, t *testing.T, number int, kind string) (exit int, out string) {
	t.Helper()
	f.h.WriteFile(t, faultInput, fmt.Sprintf("FAULT_NUMBER=%d\nFAULT_KIND=%s\n", number, kind), 0o644)
	f.h.Run(ctx, "machinectl", "start", "bb")
	unit := f.conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1/unit/systemd_2dnspawn_40bb_2eservice")
	property := func(name string) any {
		v, err := unit.GetProperty("org.freedesktop.systemd1." + name)
		if err != nil {
			t.Fatalf("%s of %s: %v", name, faultyName, err)
		}
		return v.Value()
	}
	for {
		if _, err := os.Lstat(f.h.Path(faultReport)); err == nil {
			if s := property("Unit.ActiveState"); s == "inactive" || s == "failed" {
				break
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("%s at call %d: the service does not end", kind, number)
		}
		time.Sleep(5 * time.Millisecond)
	}
	exit = int(property("Service.ExecMainStatus").(int32))
	_ = f.systemd.Call("org.freedesktop.systemd1.Manager.ResetFailedUnit", 0, faultyName).Err // it need not have failed
	words, err := os.ReadFile(f.h.Path(faultWords))
	if err != nil {
		t.Fatal(err)
	}
	return exit, string(words)
}

// judge tells what is wrong with how the spawner has ended.
func (f *faults) judge(kind, at string, exit int, out string) string {
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
func (f *faults) state(t *testing.T, v faultVariant) string {
	t.Helper()
	var s state
	s.WriteString(snapshot(t, f.h))
	if v.ports {
		for line := range strings.Lines(f.h.MustRun(t, "nft", "list", "ruleset")) {
			if strings.Contains(line, "dnat") || strings.Contains(line, "192.0.2") {
				s.add("nft", strings.TrimSpace(line))
			}
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, loop := range loops {
		if file, err := os.ReadFile(loop); err == nil && strings.Contains(string(file), f.image) {
			s.add("loop", loop)
		}
	}
	for _, dir := range []string{"/run/systemd/machines", "/run/systemd/nspawn"} {
		s.tree("run", f.h, dir, func(path string, _ fs.DirEntry) bool { return !strings.Contains(path, "/locks") })
	}
	for _, dir := range []string{"/var/lib/machines", "/var/tmp"} {
		for _, name := range namesIn(f.h.Path(dir)) {
			s.add("file", dir+"/"+name)
		}
	}
	links, _ := filepath.Glob(f.h.Path(journals))
	for _, link := range links {
		if isLink(link) {
			s.add("journal", link)
		}
	}
	s.tree("image", f.h, "/var/lib/machines/bb", func(_ string, d fs.DirEntry) bool { return strings.HasPrefix(d.Name(), ".#") })
	return s.String()
}

// same fails when something is left. It returns what there is.
func (f *faults) same(t *testing.T, v faultVariant, before, what string) (after string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		after = f.state(t, v)
		left, gone := linesOnlyIn(after, before), linesOnlyIn(before, after)
		if left == "" && gone == "" {
			return after
		}
		if time.Now().After(deadline) {
			t.Errorf("%s: left behind:\n%sgone:\n%s", what, left, gone)
			return after
		}
		time.Sleep(5 * time.Millisecond)
	}
}
