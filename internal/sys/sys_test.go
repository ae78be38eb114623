package sys

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func startSleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func TestProcessLife(t *testing.T) {
	cmd := startSleeper(t)
	p, err := OpenProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if !p.Alive() || p.PID() != cmd.Process.Pid || p.StartTime() == 0 {
		t.Errorf("process = alive %v pid %d start %d", p.Alive(), p.PID(), p.StartTime())
	}
	again, err := FromPIDFD(p.FD())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.PID() != p.PID() || again.FDID() != p.FDID() {
		t.Errorf("from pidfd: got %d/%d, want %d/%d", again.PID(), again.FDID(), p.PID(), p.FDID())
	}
	dup, err := p.Dup()
	if err != nil {
		t.Fatal(err)
	}
	exited, dupExited := p.Exited(), dup.Exited()
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, ch := range []<-chan struct{}{exited, dupExited} {
		select {
		case <-ch:
		case <-time.After(10 * time.Second):
			t.Fatal("exit not seen")
		}
	}
	dup.Close()
	dup.Close()
	if p.Alive() {
		t.Error("zombie is alive")
	}
	_ = cmd.Wait()
	if err := p.Signal(unix.SIGTERM); !errors.Is(err, unix.ESRCH) {
		t.Errorf("signal after end: got %v, want ESRCH", err)
	}
	if _, err := OpenProcess(cmd.Process.Pid); !errors.Is(err, unix.ESRCH) {
		t.Errorf("open after end: got %v, want ESRCH", err)
	}
}

func TestOpenProcessRefuses(t *testing.T) {
	for _, pid := range []int{0, -1, 1 << 30} {
		if p, err := OpenProcess(pid); !errors.Is(err, unix.ESRCH) {
			t.Errorf("OpenProcess(%d) = %v, %v; want ESRCH", pid, p, err)
		}
	}
	if _, err := FromPIDFD(0); !errors.Is(err, unix.EBADF) {
		t.Errorf("FromPIDFD(stdin): got %v, want EBADF", err)
	}
}

func TestParseCgroup(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"0::/a/b\n", "/a/b"},
		{"12:pids:/x\n1:name=systemd:/old\n0::/new\n", "/new"},
		{"1:name=systemd:/old\n", "/old"},
		{"0::/gone (deleted)\n", "/gone"},
	} {
		got, err := parseCgroup(tc.in, 1)
		if err != nil || got != tc.want {
			t.Errorf("parseCgroup(%q) = %q, %v; want %q", tc.in, got, err, tc.want)
		}
	}
	if _, err := parseCgroup("2:pids:/\n", 1); err == nil {
		t.Error("no v2 line: want an error")
	}
}

func TestProcFacts(t *testing.T) {
	parent, err := ParentOf(os.Getpid())
	if err != nil || parent != os.Getppid() {
		t.Errorf("ParentOf = %d, %v; want %d", parent, err, os.Getppid())
	}
	uid, err := UIDOf(os.Getpid())
	if err != nil || int(uid) != os.Geteuid() {
		t.Errorf("UIDOf = %d, %v; want %d", uid, err, os.Geteuid())
	}
	same, err := SameNamespace(0, os.Getpid(), "net")
	if err != nil || !same {
		t.Errorf("SameNamespace = %v, %v; want true", same, err)
	}
}

func TestOpenInStaysInside(t *testing.T) {
	dir := t.TempDir()
	for link, target := range map[string]string{"abs": "/etc/passwd", "up": "../../../../../../etc/passwd", "magic": "/proc/self/root"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, name := range []string{"abs", "up", "magic", "/etc/passwd", "../../etc/passwd"} {
		f, err := OpenIn(int(root.Fd()), name, unix.O_RDONLY)
		if err == nil {
			t.Errorf("%s leads to %s outside of the root", name, f.Name())
			f.Close()
		} else if !errors.Is(err, unix.ENOENT) {
			t.Errorf("%s: got %v, want ENOENT", name, err)
		}
	}
}

func TestIsKernelThread(t *testing.T) {
	if thread, err := IsKernelThread(os.Getpid()); thread || err != nil {
		t.Errorf("this process: got %t, %v", thread, err)
	}
	if name, err := os.ReadFile("/proc/2/comm"); err != nil || string(name) != "kthreadd\n" {
		return // no kernel threads are to be seen here
	}
	if thread, err := IsKernelThread(2); !thread || err != nil {
		t.Errorf("kthreadd: got %t, %v", thread, err)
	}
}
