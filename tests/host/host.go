package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Impl is whose programs a host runs.
type Impl string

// The implementations. Ours lies over stock's, as `make install` puts it;
// stock's programs stay reachable (Host.Stock).
const (
	Ours  Impl = "ours"
	Stock Impl = "stock"
)

// DefaultImpl is what the environment variable IMPL asks for, or Ours.
func DefaultImpl() Impl {
	if os.Getenv("IMPL") == string(Stock) {
		return Stock
	}
	return Ours
}

// Config says what host to boot.
type Config struct {
	Suite Suite // zero: Bookworm
	Impl  Impl  // zero: DefaultImpl
	// Clients boots a host with more of the programs that ask machined (of
	// Trixie); its tree is made when it is first asked for.
	Clients bool
}

// Host is a booted test host. Its methods are safe for concurrent use.
type Host struct {
	Suite Suite
	Impl  Impl
	Name  string // unique on this machine; its host name

	dir    string // overlay layers, machines
	cgroup string // of everything in it, seen from outside
	pid1   *os.Process
	notify *net.UnixConn // systemd's notifications come here
	reaper *reaper
	runs   atomic.Int64
	closed atomic.Bool
}

// bootTimeout bounds the time from start to "startup finished".
const bootTimeout = 90 * time.Second

// hostNumber makes names unique in this process.
var hostNumber atomic.Int64

// Boot boots a host for a test, which ends with the test. When the test failed
// the host's journal is in its log. It skips without root, and fails instead
// where REQUIRE_ALL=1.
func Boot(t testing.TB, c Config) *Host {
	t.Helper()
	NeedRoot(t)
	h, err := Start(context.Background(), c)
	if err != nil {
		t.Fatalf("boot %s host: %v", c.Suite, err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			h.logState(t)
		}
		if err := h.Close(); err != nil {
			t.Errorf("remove host %s: %v", h.Name, err)
		}
	})
	return h
}

// NeedRoot skips a test that is not run by root, or fails it where REQUIRE_ALL=1.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// Start boots a host that the caller closes.
func Start(ctx context.Context, c Config) (*Host, error) {
	if c.Suite == "" {
		c.Suite = Bookworm
	}
	if c.Impl == "" {
		c.Impl = DefaultImpl()
	}
	raiseLimits()
	r := hostRecipe(c.Suite)
	if c.Clients {
		r = clientRecipe(c.Suite)
	}
	base, err := ensure(ctx, r)
	if err != nil {
		return nil, err
	}
	lower := []string{base}
	if c.Impl == Ours {
		layer, err := productLayer(ctx, r, base)
		if err != nil {
			return nil, fmt.Errorf("install the product: %w", err)
		}
		lower = []string{layer, base}
	}
	cgroups, err := cgroupRoot()
	if err != nil {
		return nil, err
	}
	h := &Host{Suite: c.Suite, Impl: c.Impl, Name: fmt.Sprintf("mt%d-%d", os.Getpid(), hostNumber.Add(1))}
	h.cgroup = filepath.Join(cgroups, "machined-test-"+h.Name)
	h.dir = filepath.Join(workDir(), h.Name)
	if h.reaper, err = startReaper(reapSpec{Cgroup: h.cgroup, Dir: h.dir}); err != nil {
		return nil, err
	}
	if err := h.boot(ctx, lower); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// workDir is where running hosts have their files: on a real file system.
func workDir() string { return filepath.Join(CacheDir(), "run") }

// cgroupRoot is the mount point of cgroup v2, in hybrid layouts too.
func cgroupRoot() (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return "", err
	}
	if len(mounts) == 0 {
		return "", errors.New("find cgroup v2: not mounted")
	}
	return mounts[0].Mountpoint, nil
}

func (h *Host) boot(ctx context.Context, lower []string) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	for dir, mode := range map[string]os.FileMode{"upper": 0o755, "work": 0o755, "root": 0o755, "machines": 0o700, "vartmp": 0o777 | os.ModeSticky} {
		p := filepath.Join(h.dir, dir)
		if err := errors.Join(os.MkdirAll(p, 0o755), os.Chmod(p, mode)); err != nil {
			return err
		}
	}
	payload := filepath.Join(h.cgroup, "payload")
	if err := os.MkdirAll(payload, 0o755); err != nil {
		return err
	}
	cg, err := os.Open(payload)
	if err != nil {
		return err
	}
	defer cg.Close()
	// systemd tells here that it is up.
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(h.dir, "notify"), Net: "unixgram"})
	if err != nil {
		return err
	}
	h.notify = notify
	bootLog, err := os.Create(filepath.Join(h.dir, "boot.log"))
	if err != nil {
		return err
	}
	defer bootLog.Close()
	arg, err := json.Marshal(stageSpec{Name: h.Name, Lower: lower, Dir: h.dir})
	if err != nil {
		return err
	}
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{stageArg, string(arg)}, Stdout: bootLog, Stderr: bootLog}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:      true,
		UseCgroupFD: true,
		CgroupFD:    int(cg.Fd()),
		Cloneflags:  unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start PID 1: %w", err)
	}
	h.pid1 = cmd.Process
	died := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		died <- err
		notify.Close()
	}()
	deadline, _ := ctx.Deadline()
	notify.SetReadDeadline(deadline)
	buf := make([]byte, 4096)
	for {
		n, err := notify.Read(buf)
		if err != nil {
			log, _ := os.ReadFile(bootLog.Name())
			select {
			case err = <-died:
			default:
			}
			return fmt.Errorf("wait for PID 1: %w\n%s", err, log)
		}
		if strings.Contains(string(buf[:n]), "READY=1") {
			break
		}
	}
	notify.SetReadDeadline(time.Time{})
	go func() { // later ones, of reloads, are read so that systemd need not complain
		for {
			if _, err := notify.Read(buf); err != nil {
				return
			}
		}
	}()
	state := h.Run(ctx, "systemctl", "is-system-running")
	if got := strings.TrimSpace(state.Stdout); got != "running" {
		failed := h.Run(ctx, "systemctl", "--failed", "--no-legend", "--plain")
		journal := h.Run(ctx, "journalctl", "--no-pager", "-b", "-p", "warning", "-n", "40")
		return fmt.Errorf("boot: system is %q: %s%s\n%s", got, state.Stderr, failed.Stdout, journal.Stdout)
	}
	return nil
}

// Close ends the host and removes everything of it.
func (h *Host) Close() error {
	if h.closed.Swap(true) {
		return nil
	}
	if h.notify != nil {
		h.notify.Close()
	}
	return h.reaper.finish()
}

// Root is the host's root as seen from outside.
func (h *Host) Root() string { return fmt.Sprintf("/proc/%d/root", h.pid1.Pid) }

// Path is a path of the host as seen from outside. Symbolic links that are
// absolute lead out of the host: for tests' own files only.
func (h *Host) Path(p string) string { return filepath.Join(h.Root(), p) }

// PID is the host's PID 1 as seen from outside.
func (h *Host) PID() int { return h.pid1.Pid }

// Machines is the host's /var/lib/machines as seen from outside.
func (h *Host) Machines() string { return filepath.Join(h.dir, "machines") }

// stockSuffix is what a diverted file of a Debian package has after its name.
const stockSuffix = ".distrib"

// Stock is the path of stock's program of the given name (machinectl,
// systemd-nspawn, systemd-machined, …), whatever is installed over it.
func (h *Host) Stock(name string) string {
	for _, dir := range []string{"/usr/bin/", "/usr/lib/systemd/"} {
		p := dir + name
		if h.Impl == Ours {
			if _, err := os.Lstat(h.Path(p + stockSuffix)); err == nil {
				return p + stockSuffix
			}
		}
		if _, err := os.Lstat(h.Path(p)); err == nil {
			return p
		}
	}
	return "/nonexistent/" + name
}

// logState puts what explains a failure into the test's log.
func (h *Host) logState(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, script := range []string{
		"journalctl --no-pager -b -o short-monotonic -n 150",
		"systemctl --failed --no-legend --plain; systemctl list-jobs --no-legend",
		"tail -n +1 /run/systemd/machines/* 2>/dev/null; ls -la /var/lib/machines",
		"ps -eo pid,ppid,stat,args --forest | tail -n 80",
	} {
		r := h.Run(ctx, "sh", "-c", script)
		t.Logf("%s: %s\n%s%s", h.Name, script, r.Stdout, r.Stderr)
	}
}
