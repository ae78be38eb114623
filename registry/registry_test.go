package registry

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func request(t testing.TB, name string) (CreateRequest, func()) {
	p, end := sleeper(t)
	return CreateRequest{
		Name: name, Class: ClassContainer, Service: "test", Leader: p, RootDirectory: "/srv/" + name,
		NetIfs: []int{4, 3}, Sender: Credentials{UID: 0},
	}, end
}

func TestLifeOfAScope(t *testing.T) {
	b := newFake()
	reg, heard := newTestRegistry(t, t.TempDir(), b)
	req, end := request(t, "a-b")
	m, err := reg.Create(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	heard.want(t, "+a-b")
	if m.Unit != `machine-a\x2db.scope` || m.State != StateRunning || m.Leader.PID != req.Leader.PID() {
		t.Errorf("created machine = %+v", m)
	}
	if target, err := os.Readlink(reg.files.path("unit:" + m.Unit)); err != nil || target != "a-b" {
		t.Errorf("unit link leads to %q, %v", target, err)
	}
	got, err := reg.ByPID(req.Leader.PID())
	if err != nil || got.Name != "a-b" {
		t.Errorf("ByPID = %q, %v", got.Name, err)
	}
	if _, err := reg.Create(context.Background(), req); !errors.Is(err, ErrMachineExists) {
		t.Errorf("second create: %v, want MachineExists", err)
	}
	other := req
	other.Name = "other"
	if _, err := reg.Create(context.Background(), other); !errors.Is(err, unix.EEXIST) {
		t.Errorf("same leader under another name: %v, want EEXIST", err)
	}
	if err := reg.Kill(context.Background(), "a-b", "all", unix.SIGTERM); err != nil || len(b.killed) != 1 {
		t.Errorf("kill: %v, %q", err, b.killed)
	}
	if err := reg.Terminate(context.Background(), "a-b"); err != nil || len(b.stopped) != 1 {
		t.Errorf("terminate: %v, %q", err, b.stopped)
	}
	if m, _ := reg.Get("a-b"); m.State != StateClosing {
		t.Errorf("state after terminate = %s", m.State)
	}
	end() // the leader is dead, its unit is not
	b.end(m.Unit)
	heard.want(t, "-a-b")
	if _, err := reg.Get("a-b"); !errors.Is(err, ErrNoSuchMachine) {
		t.Errorf("get after the end: %v", err)
	}
	entries, _ := os.ReadDir(reg.files.dir)
	if len(entries) != 0 {
		t.Errorf("%d files are left, first %s", len(entries), entries[0].Name())
	}
}

func TestCreateFails(t *testing.T) {
	b := newFake()
	reg, _ := newTestRegistry(t, t.TempDir(), b)
	req, _ := request(t, "a")
	b.startErr = errors.New("refused")
	if _, err := reg.Create(context.Background(), req); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("create = %v", err)
	}
	b.startErr = nil
	b.job = make(chan error, 1)
	b.job <- &JobError{Unit: "x", Result: "failed"}
	_, err := reg.Create(context.Background(), req)
	if je := (*JobError)(nil); !errors.As(err, &je) {
		t.Errorf("create = %v, want a JobError", err)
	}
	// The directory of the state files is a file: nothing can be written.
	b.job = nil
	if err := os.RemoveAll(reg.files.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(reg.files.dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	clear(b.active)
	if _, err := reg.Create(context.Background(), req); err == nil {
		t.Error("create without a place for its state succeeded")
	}
	if len(b.active) != 0 || reg.Len() != 0 {
		t.Errorf("left behind: units %v, %d machines", b.active, reg.Len())
	}
}

func TestRestart(t *testing.T) {
	dir, b := t.TempDir(), newFake()
	reg, _ := newTestRegistry(t, dir, b)
	var ends []func()
	for _, name := range []string{"alive", "dead", "unit-lives", "unborn"} {
		req, end := request(t, name)
		if _, err := reg.Create(context.Background(), req); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end)
	}
	want, _ := reg.Get("alive")
	reg.Close()
	ends[1]()
	ends[2]()
	b.active["machine-dead.scope"] = false
	b.active["machine-unborn.scope"] = false // its leader lives: the daemon died before it asked for the scope
	for name, text := range map[string]string{
		"half": "# This is private data. Do not parse.\nNAME=ha", "wrong": "NAME=other\nLEADER=1\n",
		"huge": "NAME=huge\nROOT=" + strings.Repeat("x", 1<<20), ".#tmp": "", "noclass": "NAME=noclass\nLEADER=2\n",
	} {
		if err := os.WriteFile(filepath.Join(reg.files.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	again, heard := newTestRegistry(t, dir, b)
	var names []string
	for _, m := range again.List() {
		names = append(names, m.Name)
	}
	// The leader of alive is in the cgroup of this test, so only its pidfd
	// proves it; without pidfs it would be dropped.
	if got := strings.Join(names, " "); want.Leader.FDID != 0 && got != ".host alive unit-lives" {
		t.Errorf("after restart: %s", got)
	}
	if got, _ := again.Get("alive"); want.Leader.FDID != 0 && (got.Leader != want.Leader || !got.Realtime.Equal(want.Realtime) || got.Monotonic != want.Monotonic) {
		t.Errorf("after restart: got %+v, want %+v", got, want)
	}
	b.wantReleased(t, "machine-unit\\x2dlives.scope")
	b.end("machine-unit\\x2dlives.scope")
	heard.want(t, "-unit-lives")
}

func TestLeaderExitIsNoticed(t *testing.T) {
	b := newFake()
	reg, heard := newTestRegistry(t, t.TempDir(), b)
	req, end := request(t, "a")
	m, err := reg.Create(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	heard.want(t, "+a")
	b.mu.Lock()
	b.active[m.Unit] = false
	b.mu.Unlock()
	start := time.Now()
	end()
	heard.want(t, "-a")
	if took := time.Since(start); took > 100*time.Millisecond {
		t.Errorf("noticed after %s", took)
	}
}

// TestScopeThatOutlivesItsProcesses: the service manager has missed that the
// last process of a scope has ended.
func TestScopeThatOutlivesItsProcesses(t *testing.T) {
	b := newFake()
	reg, heard := newTestRegistry(t, t.TempDir(), b)
	req, end := request(t, "a")
	m, err := reg.Create(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	heard.want(t, "+a")
	end()
	b.wantReleased(t, m.Unit)
	// The same machine starts again: it waits for the end of this one.
	reg.AwaitEnd(context.Background(), "none of that name")
	waited := make(chan error, 1)
	go func() {
		reg.AwaitEnd(context.Background(), "a")
		again, _ := request(t, "a")
		waited <- reg.Check(again)
	}()
	b.end(m.Unit)
	heard.want(t, "-a")
	if err := <-waited; err != nil {
		t.Errorf("start of the same machine: %v", err)
	}
}

func TestCheckOrder(t *testing.T) {
	reg, _ := newTestRegistry(t, t.TempDir(), newFake())
	good, _ := request(t, "a")
	for _, tc := range []struct {
		name   string
		change func(*CreateRequest)
		want   error
	}{
		{"slash", func(r *CreateRequest) { r.Name = "../x" }, ErrInvalid},
		{"long", func(r *CreateRequest) { r.Name = strings.Repeat("a", 65) }, ErrInvalid},
		{"empty", func(r *CreateRequest) { r.Name = "" }, ErrInvalid},
		{"host", func(r *CreateRequest) { r.Name = HostName }, ErrInvalid},
		{"netif", func(r *CreateRequest) { r.NetIfs = []int{-1} }, ErrInvalid},
		{"class", func(r *CreateRequest) { r.Class = "zoo" }, ErrInvalid},
		{"no class", func(r *CreateRequest) { r.Class = "" }, ErrNotSupported},
		{"host class", func(r *CreateRequest) { r.Class = ClassHost }, ErrNotSupported},
		{"no leader", func(r *CreateRequest) { r.Leader = nil }, ErrInvalid},
		{"relative root", func(r *CreateRequest) { r.RootDirectory = "a" }, ErrInvalid},
		{"10 MB", func(r *CreateRequest) { r.Service = strings.Repeat("a", 10<<20) }, ErrInvalid},
		{"not theirs", func(r *CreateRequest) { r.Sender.UID = 12345 }, ErrAccess},
		{"admin", func(r *CreateRequest) { r.Sender = Credentials{UID: 12345, Trusted: true} }, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req := good
			tc.change(&req)
			_, err := reg.Create(context.Background(), req)
			if !errors.Is(err, tc.want) || err != nil && len(err.Error()) > 300 {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	reg := New(Config{StateDir: t.TempDir(), Backend: newFake(), MaxMachines: 3, MaxPerUser: 1})
	t.Cleanup(reg.Close)
	for i, tc := range []struct {
		uid  uint32
		want error
	}{{1000, nil}, {1000, ErrTooMany}, {1001, nil}, {0, nil}, {0, ErrTooMany}} {
		req, _ := request(t, "m"+string(rune('a'+i)))
		req.UID = tc.uid
		if _, err := reg.Create(context.Background(), req); !errors.Is(err, tc.want) {
			t.Errorf("machine %d of user %d: got %v, want %v", i, tc.uid, err, tc.want)
		}
	}
}

func TestUnregisterFreesTheName(t *testing.T) {
	reg, heard := newTestRegistry(t, t.TempDir(), newFake())
	for range 50 {
		req, _ := request(t, "a")
		if _, err := reg.Create(context.Background(), req); err != nil {
			t.Fatal(err)
		}
		if err := reg.Unregister(context.Background(), "a"); err != nil {
			t.Fatal(err)
		}
		heard.want(t, "+a")
		heard.want(t, "-a")
		if !req.Leader.Alive() {
			t.Fatal("unregister has killed the leader")
		}
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "a-b.c": true, "4x": true, strings.Repeat("a", 64): true, "A.b": true,
		"": false, ".": false, "a.": false, ".a": false, "a..b": false, "-a": false, "a-": false,
		"a.-b": false, "a-.b": false, "a_b": false, "ä": false, "a b": false, "a\n": false, "a\x00": false,
	} {
		if got := ValidName(name); got != want {
			t.Errorf("ValidName(%q) = %v, want %v", name, got, want)
		}
	}
}

func TestFacts(t *testing.T) {
	// Every combination, against the rule in words.
	for bits := range 1 << 7 {
		on := func(i int) bool { return bits&(1<<i) != 0 }
		f := facts{on(0), on(1), on(2), on(3), on(4), on(5), on(6)}
		keep := f.host || f.leaderKnown && (f.leaderAlive || f.jobPending || f.ownsUnit && f.unitActive)
		if collectable(f) == keep {
			t.Errorf("collectable(%+v) = %v", f, !keep)
		}
		want := StateRunning
		if !f.host && f.jobPending {
			want = StateOpening
		}
		if !f.host && f.stopping {
			want = StateClosing
		}
		if got := stateOf(f); got != want {
			t.Errorf("stateOf(%+v) = %s, want %s", f, got, want)
		}
	}
}

func TestSharedUnit(t *testing.T) {
	b := newFake()
	reg, _ := newTestRegistry(t, t.TempDir(), b)
	for _, sub := range []string{"one", "two"} {
		req, _ := request(t, sub)
		if _, err := reg.add(context.Background(), req, "app.service", sub, false); err != nil {
			t.Fatal(err)
		}
	}
	if m, ok := reg.ByUnit("app.service", "two/init.scope"); !ok || m.Name != "two" {
		t.Errorf("ByUnit = %q, %v", m.Name, ok)
	}
	if err := reg.Terminate(context.Background(), "one"); !errors.Is(err, ErrNotSupported) {
		t.Errorf("terminate of a part of a unit without supervisor: %v", err)
	}
	if _, err := os.Lstat(reg.files.path("unit:app.service")); err == nil {
		t.Error("a shared unit has a link")
	}
}

func TestLastingSubgroup(t *testing.T) {
	for in, want := range map[string]string{"": "", "payload": "", "supervisor": "", "app": "app"} {
		if got := lastingSubgroup(in); got != want {
			t.Errorf("lastingSubgroup(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestDelegated: a user's are the cgroups that were handed over, and those below.
func TestDelegated(t *testing.T) {
	owners := map[string]uint32{
		"/user.slice/user-7.slice/user@7.service": 7, "/user.slice/user-7.slice/user@7.service/app.slice": 7,
		"/system.slice/web.service/jobs": 7, "/machine.slice/box.service/payload": 1000000,
	}
	owner := func(path string) (uint32, error) { return owners[path], nil }
	for _, test := range []struct {
		path, unit string
		want       bool
	}{
		{"/user.slice/user-7.slice/user@7.service/app.slice/x.service", "user@7.service", true},
		{"/user.slice/user-7.slice/user@7.service", "user@7.service", true},
		{"/user.slice/user-7.slice/session-3.scope", "session-3.scope", false},
		{"/system.slice/cron.service", "cron.service", false},
		{"/system.slice/web.service/jobs/one", "web.service", true},
		{"/system.slice/web.service/other", "web.service", false},
		{"/machine.slice/box.service/payload", "box.service", false},
		{"/elsewhere", "web.service", false},
	} {
		if got := delegated(test.path, test.unit, 7, owner); got != test.want {
			t.Errorf("%s of %s: got %v", test.path, test.unit, got)
		}
	}
}

// TestOwns: who has registered a machine owns it as long as its leader is that user's.
func TestOwns(t *testing.T) {
	reg, _ := newTestRegistry(t, t.TempDir(), newFake())
	me := uint32(os.Getuid())
	for name, uid := range map[string]uint32{"mine": me, "taken": me + 7} {
		req, _ := request(t, name)
		req.UID = uid
		e, err := newEntry(req, "", "")
		if err == nil {
			err = reg.reserve(e)
		}
		if err == nil {
			_, err = reg.publish(e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name string
		uid  uint32
		want bool
	}{{"mine", me, true}, {"mine", me + 7, false}, {"taken", me + 7, false}, {"taken", me, false}, {"nope", me, false}} {
		if got := reg.Owns(test.name, test.uid); got != test.want {
			t.Errorf("%s, %d: got %v", test.name, test.uid, got)
		}
	}
}

// TestGuestInUnit: what is done to a machine in a unit of others is done to its leader alone.
func TestGuestInUnit(t *testing.T) {
	b := newFake()
	reg, heard := newTestRegistry(t, t.TempDir(), b)
	req, _ := request(t, "guest")
	req.UID = 7
	b.active["cron.service"] = true
	e, err := newEntry(req, "cron.service", "")
	if err != nil {
		t.Fatal(err)
	}
	e.m.Shared = true
	if err := errors.Join(reg.reserve(e), reg.files.save(&e.m)); err != nil {
		t.Fatal(err)
	}
	if _, err := reg.publish(e); err != nil {
		t.Fatal(err)
	}
	heard.want(t, "+guest")
	if _, err := os.Lstat(reg.files.path("unit:cron.service")); err == nil {
		t.Error("the unit leads to the machine")
	}
	if m, ok := reg.ByUnit("cron.service", ""); ok {
		t.Errorf("others in the unit are in machine %q", m.Name)
	}
	if err := reg.Kill(context.Background(), "guest", "all", unix.SIGCONT); err != nil {
		t.Error(err)
	}
	if err := reg.Terminate(context.Background(), "guest"); err != nil {
		t.Error(err)
	}
	heard.want(t, "-guest") // its leader has ended; the unit goes on
	if len(b.killed) > 0 || len(b.stopped) > 0 {
		t.Errorf("signalled %q, stopped %q", b.killed, b.stopped)
	}
}
