package sysctlguard

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"machined/internal/cgroup"
)

// settings of each kind, and which namespace they belong to; "" is the host's.
var settings = map[string]string{
	"kernel/core_pattern": "", "kernel/sysrq": "", "kernel/sched_rt_runtime_us": "", "kernel/panic_on_oops": "",
	"vm/swappiness": "", "fs/file-max": "", "fs/protected_hardlinks": "",
	"net/ipv4/ip_forward": "net", "kernel/shmmax": "ipc", "kernel/sem": "ipc", "kernel/msgmni": "ipc", "fs/mqueue/msg_max": "ipc",
	"kernel/hostname": "uts", "kernel/domainname": "uts", "user/max_user_namespaces": "user",
}

// TestGuard writes to each setting what it is already, from within a cgroup.
func TestGuard(t *testing.T) {
	for _, own := range []struct {
		name string
		own  Own
		may  string
	}{
		{"nothing", Own{}, ""},
		{"network", Own{Network: true}, "net"},
		{"as a machine", Own{IPC: true, UTS: true, PID: true}, "ipc uts"},
		{"all", Own{Network: true, IPC: true, UTS: true, PID: true, Users: true}, "net ipc uts user"},
	} {
		t.Run(own.name, func(t *testing.T) {
			dir := newCgroup(t)
			program, err := Load(own.own)
			if err != nil {
				t.Fatal(err)
			}
			if err := Attach(program, dir); err != nil {
				t.Fatal(err)
			}
			program.Close()
			for name, of := range settings {
				if rewrite(nil, name) != nil { // not there, or not this test's to change
					continue
				}
				if err := rewrite(dir, name); (err == nil) != (of != "" && strings.Contains(own.may, of)) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if err := rewrite(nil, "vm/swappiness"); err != nil {
				t.Errorf("outside of the cgroup: %v", err)
			}
		})
	}
}

// TestGuardBelow: a cgroup below is guarded too, also when it has a guard of its own
// that would let more through.
func TestGuardBelow(t *testing.T) {
	dir := newCgroup(t)
	program, err := Load(Own{UTS: true})
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	if err := Attach(program, dir); err != nil {
		t.Fatal(err)
	}
	below := makeCgroup(t, filepath.Join(dir.Name(), "below"))
	wide, err := Load(Own{Network: true, UTS: true})
	if err != nil {
		t.Fatal(err)
	}
	defer wide.Close()
	if err := Attach(wide, below); err != nil {
		t.Fatal(err)
	}
	if err := rewrite(below, "net/ipv4/ip_forward"); err == nil {
		t.Error("the guard above does not hold")
	}
	if err := rewrite(below, "kernel/hostname"); err != nil {
		t.Error(err)
	}
}

// rewrite writes a setting's value to it, by a process that is born in a cgroup.
func rewrite(dir *os.File, name string) error {
	cmd := exec.Command("sh", "-c", `v=$(cat "$1") && printf '%s\n' "$v" >"$1"`, "sh", "/proc/sys/"+name)
	if dir != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func newCgroup(t testing.TB) *os.File {
	t.Helper()
	need := ""
	tree, err := cgroup.FindOwnTree()
	switch {
	case os.Geteuid() != 0:
		need = "needs root"
	case err != nil:
		need = err.Error()
	}
	if need != "" {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal(need)
		}
		t.Skip(need)
	}
	return makeCgroup(t, filepath.Join(tree.Root, fmt.Sprintf("machined-guard-%d-%s", os.Getpid(), strings.NewReplacer("/", "-", " ", "-").Replace(t.Name()))))
}

func makeCgroup(t testing.TB, path string) *os.File {
	t.Helper()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Rmdir(path); err != nil {
			t.Error(err)
		}
	})
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

// TestWholeNames: what is compared as a whole name fits, so that no longer one is taken for it.
func TestWholeNames(t *testing.T) {
	for _, name := range (Own{true, true, true, true, true}).names() {
		if len(name) >= nameLength {
			t.Errorf("%q is longer than what is read", name)
		}
	}
}

// BenchmarkLoad is what a start pays.
func BenchmarkLoad(b *testing.B) {
	dir := newCgroup(b)
	for b.Loop() {
		program, err := Load(Own{Network: true, IPC: true, UTS: true, PID: true})
		if err != nil {
			b.Fatal(err)
		}
		if err := Attach(program, dir); err != nil {
			b.Fatal(err)
		}
		program.Close()
		b.StopTimer()
		if err := unix.Rmdir(dir.Name()); err != nil {
			b.Fatal(err)
		}
		if err := os.Mkdir(dir.Name(), 0o755); err != nil {
			b.Fatal(err)
		}
		dir.Close()
		if dir, err = os.Open(dir.Name()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
