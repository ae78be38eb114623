package cgroup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	ossignal "os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"machined/internal/sys"
	"machined/internal/unit"
)

// TestMain lets the test binary play the spawner.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "spawner" {
		spawner()
	}
	os.Exit(m.Run())
}

// spawner makes a payload, says READY=1 and waits for SIGTERM. What the image
// is called decides how it fails.
func spawner() {
	if slices.Contains(os.Args, "--cleanup") {
		os.Exit(0)
	}
	name := strings.TrimPrefix(os.Args[len(os.Args)-1], "--machine=")
	if strings.Contains(name, "fail") {
		fmt.Println("no such image here")
		os.Exit(3)
	}
	term := make(chan os.Signal, 1)
	ossignal.Notify(term, unix.SIGTERM)
	payload := exec.Command("sleep", "600")
	if err := payload.Start(); err != nil {
		os.Exit(4)
	}
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		os.Exit(5)
	}
	if !strings.Contains(name, "mute") {
		fmt.Fprint(conn, "READY=1\nSTATUS=Container running.")
	}
	if strings.Contains(name, "reboot") {
		marker := os.Getenv("MARKER")
		if _, err := os.Stat(marker); err != nil {
			_ = os.WriteFile(marker, nil, 0o600)
			os.Exit(133)
		}
	}
	<-term
	os.Exit(0)
}

func newTestBackend(t *testing.T, dir string) *Backend {
	t.Helper()
	b, err := New(testConfig(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func testConfig(t *testing.T, dir string) Config {
	t.Helper()
	needRoot(t)
	tree, err := FindOwnTree()
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetLevel(logrus.PanicLevel)
	return Config{
		Tree: tree, StateDir: dir, UnitDir: filepath.Join(dir, "etc"), Spawner: []string{os.Args[0], "spawner"},
		Env: []string{"PATH=" + os.Getenv("PATH"), "MARKER=" + filepath.Join(dir, "marker")}, Log: log,
		StartTimeout: 20 * time.Second, StopTimeout: 10 * time.Second,
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatal("makes cgroups: needs root")
	}
	t.Skip("makes cgroups: needs root")
}

func waitGone(t *testing.T, b *Backend, name string) {
	t.Helper()
	b.mu.Lock()
	s := b.services[name]
	b.mu.Unlock()
	if s != nil {
		select {
		case <-s.gone:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s does not end", name)
		}
	}
	dir, err := b.cfg.Tree.dir(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("cgroup %s is left: %v", dir, err)
	}
}

func TestServiceLife(t *testing.T) {
	b := newTestBackend(t, t.TempDir())
	defer func() { b.Close() }()
	ctx := context.Background()
	name, err := b.StartMachine(ctx, "core-test-life", nil)
	if err != nil {
		t.Fatal(err)
	}
	if b.Status(name) != "Container running." {
		t.Errorf("status = %q", b.Status(name))
	}
	if active, err := b.Active(ctx, name); err != nil || !active {
		t.Errorf("active = %v, %v", active, err)
	}
	// machined restarts: the spawner goes on and is taken up again.
	dir := b.cfg.StateDir
	b.Close()
	b = newTestBackend(t, dir)
	if active, err := b.Active(ctx, name); err != nil || !active {
		t.Errorf("after restart: active = %v, %v", active, err)
	}
	if again, err := b.StartMachine(ctx, "core-test-life", nil); err != nil || again != name {
		t.Errorf("start of a running machine = %q, %v", again, err)
	}
	if err := b.Stop(ctx, name); err != nil {
		t.Fatal(err)
	}
	waitGone(t, b, name)
	if records, _ := os.ReadDir(filepath.Join(dir, "units")); len(records) != 0 {
		t.Errorf("%d records are left", len(records))
	}
}

func TestServiceFails(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.StartTimeout = 500 * time.Millisecond
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for image, want := range map[string]string{
		"core-test-fail": "exit status 3: no such image here",
		"core-test-mute": "not ready within",
	} {
		_, err := b.StartMachine(context.Background(), image, nil)
		if je := (*unit.JobError)(nil); !errors.As(err, &je) || !strings.Contains(err.Error(), want) {
			t.Errorf("start %s: %v, want a JobError with %q", image, err, want)
		}
		waitGone(t, b, unit.SpawnerName(image))
	}
}

func TestServiceReboots(t *testing.T) {
	b := newTestBackend(t, t.TempDir())
	defer b.Close()
	name, err := b.StartMachine(context.Background(), "core-test-reboot", nil)
	if err != nil {
		t.Fatal(err)
	}
	// The first run ends with 133 after its marker is there; the second stays.
	// Kill, which is not a reboot, then ends it for good.
	events := make(chan unit.Event, 16)
	if err := b.Watch(t.Context(), func(ev unit.Event) { events <- ev }); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	s := b.services[name]
	b.mu.Unlock()
	if s == nil {
		t.Fatal("the machine is gone instead of rebooting")
	}
	if err := b.Stop(context.Background(), name); err != nil {
		t.Fatal(err)
	}
	waitGone(t, b, name)
}

func TestScopeLife(t *testing.T) {
	b := newTestBackend(t, t.TempDir())
	defer b.Close()
	events := make(chan unit.Event, 16)
	if err := b.Watch(t.Context(), func(ev unit.Event) { events <- ev }); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	p, err := sys.OpenProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	scope := unit.Scope{Name: unit.ScopeName("core-test-scope"), Leader: p}
	job, err := b.StartScope(context.Background(), scope)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-job.Done; err != nil {
		t.Fatal(err)
	}
	if path, err := sys.CgroupOf(p.PID()); err != nil || path != "/machine.slice/"+scope.Name {
		t.Errorf("leader is in %q, %v", path, err)
	}
	if _, err := b.StartScope(context.Background(), scope); !errors.Is(err, unix.EEXIST) {
		t.Errorf("second scope: %v, want EEXIST", err)
	}
	if err := b.Kill(context.Background(), scope.Name, "../../..", unix.SIGTERM); err == nil {
		// The path is cut at the unit, so that the leader is what it hits.
		_ = cmd.Wait()
	}
	select {
	case ev := <-events:
		if ev.Unit != scope.Name {
			t.Errorf("event of %q", ev.Unit)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the end of the scope is not seen")
	}
	if active, err := b.Active(context.Background(), scope.Name); err != nil || active {
		t.Errorf("active = %v, %v", active, err)
	}
	waitGone(t, b, scope.Name)
}

func TestEnable(t *testing.T) {
	b := newTestBackend(t, t.TempDir())
	defer b.Close()
	changes, err := b.Enable(context.Background(), []string{"a"}, true)
	if err != nil || len(changes) != 2 || changes[0].Type != "symlink" {
		t.Errorf("enable = %+v, %v", changes, err)
	}
	if images, err := b.Enabled(); err != nil || len(images) != 1 || images[0] != "a" {
		t.Errorf("enabled = %q, %v", images, err)
	}
	changes, err = b.Enable(context.Background(), []string{"a"}, false)
	if err != nil || len(changes) != 1 || changes[0].Type != "unlink" {
		t.Errorf("disable = %+v, %v", changes, err)
	}
}

func TestFindTree(t *testing.T) {
	const hybrid = "25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
		"26 25 0:23 /part /mnt/part rw - cgroup2 cgroup2 rw\n" +
		"27 25 0:23 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
	if tree, err := FindTree(strings.NewReader(hybrid)); err != nil || tree.Root != "/sys/fs/cgroup/unified" {
		t.Errorf("hybrid: %+v, %v", tree, err)
	}
	if _, err := FindTree(strings.NewReader("25 20 0:22 / / rw - ext4 x rw\n")); !errors.Is(err, ErrNoCgroup2) {
		t.Errorf("without cgroup v2: %v", err)
	}
}
