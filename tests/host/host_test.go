//go:build integration

package host_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

func TestBootAndRun(t *testing.T) {
	host.NeedRoot(t)
	for _, suite := range host.Suites {
		t.Run(string(suite), func(t *testing.T) {
			start := time.Now()
			h := host.Boot(t, host.Config{Suite: suite, Impl: host.Stock})
			t.Logf("booted in %v", time.Since(start))
			if got := strings.TrimSpace(h.MustRun(t, "cat", "/proc/1/comm")); got != "systemd" {
				t.Errorf("PID 1: got %q, want systemd", got)
			}
			if r := h.TryAs("alice", "id", "-un"); strings.TrimSpace(r.Stdout) != "alice" {
				t.Errorf("run as alice: %v", r)
			}
			if r := h.Try("sh", "-c", "exit 7"); r.Exit != 7 {
				t.Errorf("exit status: %v", r)
			}
			p := h.StartTTY(t, "", "sh", "-c", "tty; read x; echo got-$x")
			p.Expect(t, "/dev/pts/")
			p.Send(t, "it\n")
			p.Expect(t, "got-it")
			if got := p.Wait(t); got != 0 {
				t.Errorf("terminal: exit %d", got)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			if r := h.Run(ctx, "sleep", "100"); r.Err == nil {
				t.Errorf("time-out: %v", r)
			}
			// A zombie until the machine's own PID 1 gets round to it.
			if r := h.Try("pgrep", "-r", "R,S,D", "-x", "sleep"); r.Exit != 1 {
				t.Errorf("left after time-out: %v", r)
			}
			start = time.Now()
			h.OSTree(t, "deb")
			t.Logf("copied a tree in %v", time.Since(start))
			start = time.Now()
			h.MustRun(t, "machinectl", "start", "deb")
			t.Logf("started it in %v", time.Since(start))
			h.MustRun(t, "machinectl", "terminate", "deb")
		})
	}
}

// TestHang is the child of TestNothingLeftAfterKill: it boots a host and waits.
func TestHang(t *testing.T) {
	if os.Getenv("MACHINED_TEST_HANG") == "" {
		return // a test of its own only for the other one
	}
	h := host.Boot(t, host.Config{Impl: host.Stock})
	h.BusyboxTree(t, "bb")
	h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "sleep", "1000000")
	h.Shell(t, "truncate -s 1M /var/tmp/disk; losetup -f /var/tmp/disk")
	fmt.Printf("booted %s\n", h.Name)
	select {}
}

// TestNothingLeftAfterKill kills a test binary that has a host.
func TestNothingLeftAfterKill(t *testing.T) {
	host.NeedRoot(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestHang$")
	cmd.Env = append(os.Environ(), "MACHINED_TEST_HANG=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var name string
	lines := bufio.NewScanner(out)
	for name == "" && lines.Scan() {
		name, _ = strings.CutPrefix(lines.Text(), "booted ")
		if name == lines.Text() {
			name = ""
		}
	}
	if name == "" {
		t.Fatalf("the child booted nothing: %v", cmd.Wait())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	host.Eventually(t, 20*time.Second, func() error {
		loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		for _, l := range loops {
			if data, _ := os.ReadFile(l); strings.Contains(string(data), "/var/tmp/disk") {
				return fmt.Errorf("loop device left: %s %s", l, data)
			}
		}
		for _, pattern := range []string{"/sys/fs/cgroup/machined-test-" + name, "/sys/fs/cgroup/unified/machined-test-" + name, filepath.Join(host.CacheDir(), "run", name)} {
			if _, err := os.Stat(pattern); err == nil {
				return fmt.Errorf("left: %s", pattern)
			}
		}
		return nil
	})
}
