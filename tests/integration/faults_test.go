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
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	{name: "reboot", args: "-x -U -M bb sh -c '[ -e /again ] && exit; >/again; reboot -f; sleep 9'"},
	{name: "template", args: "--template=/var/lib/small -D /var/lib/machines/made true", clean: "/var/lib/machines/made"},
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
// MACHINED_TEST_FAULTS is a number of calls to try of each start, or all, or names of
// system calls: then each of these calls of each start fails in one way, and in all ways
// the first time that it is made with these arguments; two hosts share the work.
func TestFaults(t *testing.T) {
	ours(t)
	samples, hosts := 3, 1
	tried := &triedCalls{keys: map[string]bool{}}
	if text := os.Getenv("MACHINED_TEST_FAULTS"); text != "" {
		n, err := strconv.Atoi(text)
		samples = n
		if err != nil {
			samples, hosts = 0, 2
		}
		if err != nil && text != "all" {
			tried.only = strings.Split(text, ",")
		}
	}
	free := make(chan *faults, hosts)
	for range hosts {
		free <- newFaults(t, samples, tried)
	}
	began := time.Now()
	t.Cleanup(func() {
		t.Logf("%d variants: %d calls, %d different ones, %d faults, %d starts in %v", len(faultVariants),
			tried.calls, len(tried.keys), tried.faults, tried.starts, time.Since(began).Round(time.Second))
	})
	for i, v := range faultVariants {
		t.Run(v.name, func(t *testing.T) {
			if hosts > 1 {
				t.Parallel()
			}
			f := <-free
			defer func() { free <- f }()
			f.variant(t, i, v)
		})
	}
}

// triedCalls are the calls that have failed in all ways, of all variants.
type triedCalls struct {
	mu                    sync.Mutex
	keys                  map[string]bool
	only                  []string // of the calls with these names, nil: of all
	calls, faults, starts int
}

// plan chooses what is to fail, and how.
func (c *triedCalls) plan(calls []faultCall, variant, samples int) (list []fault) {
	if samples > 0 {
		// One call of each part of the start. The same ones each time, so that a run says something of the change.
		rnd := rand.New(rand.NewPCG(1, uint64(variant)))
		samples = min(samples, len(calls))
		for _, kind := range faultKinds {
			for i := range samples {
				list = append(list, fault{calls[i*len(calls)/samples+rnd.IntN(len(calls)/samples)].name, kind})
			}
		}
		return list
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, call := range calls {
		if name, _, _ := strings.Cut(call.name, "/"); c.only != nil && !slices.Contains(c.only, name) {
			continue
		}
		if !c.keys[call.key] {
			c.keys[call.key] = true
			for _, kind := range faultKinds {
				list = append(list, fault{call.name, kind})
			}
			continue
		}
		list = append(list, fault{call.name, faultKinds[(i+variant)%len(faultKinds)]})
	}
	return list
}

// runs matches the state of a host in which a machine runs, or is being taken down.
var runs = regexp.MustCompile(`(?m)^(unit machine-|process )`)

// fault is a call that fails, by its name and number, and in which way.
type fault struct{ call, kind string }

// noFault is a start where all goes well.
var noFault = fault{"none", "0"}

// faultCall is one call of a start: NAME/NUMBER, and what is the same in another start
// that makes the same call.
type faultCall struct{ name, key string }

var changing = regexp.MustCompile(`[0-9a-f]{8,}|[0-9]+`)

// readReport reads what faults has written: how many calls there were, which one has
// failed, and all of them if it was to list them.
func readReport(data string) (count int, at string, calls []faultCall) {
	head, lines, _ := strings.Cut(data, "\n")
	number, at, _ := strings.Cut(head, " ")
	count, _ = strconv.Atoi(number)
	times := map[string]int{}
	for line := range strings.Lines(lines) {
		name, args, _ := strings.Cut(strings.TrimSpace(line), " ")
		kind, _, _ := strings.Cut(name, "/")
		// Processes, descriptors and names that are drawn.
		key := kind + " " + changing.ReplaceAllString(args, "#")
		times[key]++
		calls = append(calls, faultCall{name, key + " " + strconv.Itoa(times[key])})
	}
	return count, at, calls
}

// faults is one host in which starts fail.
type faults struct {
	h       *host.Host
	systemd godbus.BusObject
	conn    *godbus.Conn
	image   string // in the pool, without its suffix
	samples int
	tried   *triedCalls
}

func newFaults(t *testing.T, samples int, tried *triedCalls) *faults {
	h := host.Boot(t, host.Config{Suite: host.Bookworm})
	h.Compile(t, "testdata/faults.c", "/usr/local/bin/faults", "-static")
	tree := h.BusyboxTree(t, "bb")
	// Of another name in each host, as all see all loop devices.
	f := &faults{h: h, conn: h.Bus(t), image: "img-" + h.Name, samples: samples, tried: tried}
	f.systemd = f.conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
	h.Shell(t, fmt.Sprintf(`mkdir -p /var/log/journal /var/tmp/up
ip link add fi0 type veth peer name fi1; ip link add fm0 type veth peer name fm1; ip link set fm0 up
mksquashfs %[1]s /var/lib/machines/%[2]s.raw -quiet -no-progress -comp gzip >/dev/null
mkdir -p /run/systemd/nspawn /var/lib/small/bin; cd /var/lib/small # each file is some calls more
cp -a %[1]s/etc %[1]s/usr . 2>/dev/null; rm -rf usr/bin usr/sbin; mkdir usr/bin; cp %[1]s/bin/busybox bin; ln bin/busybox bin/true; ln bin/busybox bin/sh`, tree, f.image))
	return f
}

// faultKinds are what happens at a call.
var faultKinds = []string{"5", "12", "kill", "kill:system.slice/systemd-machined.service"} // 5 is EIO, 12 ENOMEM

// variant goes through the calls of one way to start.
func (f *faults) variant(t *testing.T, number int, v faultVariant) {
	v.args = strings.ReplaceAll(v.args, "IMAGE", "/var/lib/machines/"+f.image)
	if v.service {
		f.service(t, v)
	}
	var before string
	var calls []faultCall
	for i := range 2 { // the first may make what stays: tables of nftables, /run/systemd/nspawn
		r := f.run(t, v, noFault)
		if r.exit != 0 || len(r.calls) < 30 || len(r.calls) != r.count {
			t.Fatalf("without a fault: exit %d, %d calls, %d listed: %s", r.exit, r.count, len(r.calls), r.out)
		}
		if i > 0 {
			f.same(t, v, before, "without a fault")
		}
		host.Eventually(t, 10*time.Second, func() error {
			if before = f.state(t, v); runs.MatchString(before) {
				return fmt.Errorf("still there:\n%s", before)
			}
			return nil
		})
		calls = r.calls
	}
	starts, began := 0, time.Now()
	list := f.tried.plan(calls, number, f.samples)
	for i, now := range list {
		if i > 0 && i%500 == 0 {
			t.Logf("%d of %d faults in %v", i, len(list), time.Since(began).Round(time.Second))
		}
		r := f.run(t, v, now)
		starts++
		what := fmt.Sprintf("%s at %s", now.kind, now.call)
		if problem := judge(now.kind, r); problem != "" {
			t.Errorf("%s: %s (exit %d):\n%s", what, problem, r.exit, r.out)
		}
		// Nobody was left to clean up, or a call of the cleaning failed: the next start does it.
		if now.kind == "kill" || r.exit == 0 && r.at != "nothing" && !f.settled(t, v, before) {
			if r := f.run(t, v, noFault); r.exit != 0 {
				t.Errorf("start after %s: exit %d: %s", what, r.exit, r.out)
			}
			starts++
		}
		before = f.same(t, v, before, what)
	}
	f.tried.mu.Lock()
	defer f.tried.mu.Unlock()
	f.tried.calls, f.tried.faults, f.tried.starts = f.tried.calls+len(calls), f.tried.faults+len(list), f.tried.starts+starts
	t.Logf("%d calls, %d faults, %d starts in %v", len(calls), len(list), starts, time.Since(began).Round(time.Second))
}

// Files of the host between it and this test.
const (
	faultReport = "/run/faults.report"
	faultInput  = "/run/faults.env"
	faultWords  = "/run/faults.err"
)

// faultyStart is how a start ended: the exit status, how many calls there were, which one
// failed, what the spawner said, and all calls if none was to fail.
type faultyStart struct {
	exit, count int
	at, out     string
	calls       []faultCall
}

// run starts the machine with one fault.
func (f *faults) run(t *testing.T, v faultVariant, now fault) (r faultyStart) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := os.Remove(f.h.Path(faultReport)); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if v.service {
		r.exit, r.out = f.runService(ctx, t, now)
	} else {
		ran := f.h.Run(ctx, "bash", "-c", fmt.Sprintf("exec faults %s %s %s systemd-nspawn -q --console=pipe %s </dev/null >/dev/null", faultReport, now.call, now.kind, v.args))
		r.exit, r.out = ran.Exit, ran.Stderr
	}
	report, err := os.ReadFile(f.h.Path(faultReport))
	if err != nil {
		t.Fatalf("%v: %v; exit %d: %s", now, err, r.exit, r.out)
	}
	r.count, r.at, r.calls = readReport(string(report))
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
	return r
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
ExecStart=/usr/local/bin/faults ` + faultReport + ` ${FAULT_CALL} ${FAULT_KIND} systemd-nspawn --quiet --keep-unit --link-journal=try-guest --network-veth -U --settings=override --machine=%i `
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
func (f *faults) runService(ctx context.Context, t *testing.T, now fault) (exit int, out string) {
	t.Helper()
	f.h.WriteFile(t, faultInput, fmt.Sprintf("FAULT_CALL=%s\nFAULT_KIND=%s\n", now.call, now.kind), 0o644)
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
			t.Fatalf("%v: the service does not end", now)
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
func judge(kind string, r faultyStart) string {
	var lines []string
	for line := range strings.Lines(r.out) {
		if !strings.Contains(line, "ignoring") { // what is optional may be missing, which is said
			lines = append(lines, line)
		}
	}
	switch {
	case strings.Contains(r.out, "goroutine ") || strings.Contains(r.out, "panic"):
		return "it crashed"
	case kind == "kill":
		return ""
	case r.exit == 0: // it could do without, or this start took fewer calls
		return ""
	case strings.HasPrefix(r.out, "sh: "): // the machine's own shell could not go on
		return ""
	case r.exit != 1:
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
	for _, dir := range []string{"", "/etc", "/var", "/var/log", "/mnt", "/run", "/dev", "/usr", "/usr/lib"} {
		for _, name := range namesIn(f.h.Path("/var/lib/machines/bb" + dir)) {
			if strings.HasPrefix(name, ".#") {
				s.add("image", dir+"/"+name)
			}
		}
	}
	return s.String()
}

// settled tells whether the host is soon as it was before.
func (f *faults) settled(t *testing.T, v faultVariant, before string) bool {
	t.Helper()
	for range 40 {
		if after := f.state(t, v); linesOnlyIn(after, before) == "" && linesOnlyIn(before, after) == "" {
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false
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
