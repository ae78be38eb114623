package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bench is a busybox tree and the program, built as it is shipped.
type bench struct{ program, dir, tree string }

func newBench(t *testing.T) *bench {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	missing := ""
	switch {
	case os.Geteuid() != 0:
		missing = "needs root"
	case err != nil:
		missing = "needs busybox-static"
	}
	if missing != "" {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	b := &bench{dir: t.TempDir()}
	b.program, b.tree = filepath.Join(b.dir, "machine-spawn"), filepath.Join(b.dir, "bbtest")
	build := exec.Command("go", "build", "-o", b.program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, dir := range []string{"usr/bin", "usr/lib", "etc", "home"} {
		if err := os.MkdirAll(filepath.Join(b.tree, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{b.dir, filepath.Dir(b.dir)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	b.write(t, "usr/bin/busybox", string(data), 0o755)
	for _, name := range strings.Fields("sh cat ls id touch test stat grep mkdir mknod true sleep mount hostname sync dd readlink chroot [") {
		if err := os.Symlink("busybox", filepath.Join(b.tree, "usr/bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"bin", "sbin"} {
		if err := os.Symlink("usr/bin", filepath.Join(b.tree, name)); err != nil {
			t.Fatal(err)
		}
	}
	b.write(t, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nu1:x:1000:1000::/home/u1:/bin/sh\n", 0o644)
	return b
}

func (b *bench) write(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(b.tree, name), []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// run returns what the machine wrote, and the program's exit status.
func (b *bench) run(t *testing.T, options []string, command ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	args := append([]string{"--quiet", "--register=no", "--console=pipe", "--directory=" + b.tree}, options...)
	cmd := exec.CommandContext(ctx, b.program, append(args, command...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	stray, err := os.Open(b.program)
	if err != nil {
		t.Fatal(err)
	}
	defer stray.Close()
	cmd.ExtraFiles = []*os.File{stray} // not for the machine
	err = cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out.String()), cmd.ProcessState.ExitCode()
}

// Rows of section 4 of the feature list: what a machine looks like from inside.
func TestMachine(t *testing.T) {
	b := newBench(t)
	share := filepath.Join(b.dir, "share")
	for _, dir := range []string{"l1", "l2", "l3", "up", "own"} {
		if err := os.MkdirAll(filepath.Join(share, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(share, dir, dir), []byte(dir+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	overlay := share + "/l1:" + share + "/l2:" + share + "/l3:"
	for _, test := range []struct {
		name, options, script string
		want                  string
	}{
		{"PID 1", "", "echo $$", "1"},
		{"PID 2", "--as-pid2", "echo $$", "2"},
		{"PID 2 mapped, as a user without rights", "-a --private-users=1048576 --private-users-ownership=map --user=u1 --drop-capability=all --no-new-privileges=yes", "echo $$; id -un", "2\nu1"},
		{"name", "--machine=foo", "hostname", "foo"},
		{"hostname", "--machine=foo --hostname=bar", "hostname", "bar"},
		{"uuid", "--uuid=f5a7c3a1-9a8b-4d12-8a3b-3c6a3ae1fb2c", "echo $container_uuid", "f5a7c3a1-9a8b-4d12-8a3b-3c6a3ae1fb2c"},
		{"user", "--user=u1", "id -un; echo $HOME; test -d $HOME && echo home", "u1\n/home/u1\nhome"},
		{"read-only", "--read-only", "touch /a 2>/dev/null || echo no", "no"},
		{"volatile", "--volatile=yes", "touch /a && (touch /usr/a 2>/dev/null || echo no)", "no"},
		{"volatile state", "--volatile=state", "touch /var/a && (touch /a 2>/dev/null || echo no)", "no"},
		{"volatile overlay", "--volatile=overlay", "touch /a /usr/a && echo yes", "yes"},
		{"ephemeral", "--ephemeral", "touch /gone && echo yes", "yes"},
		{"ephemeral is gone", "", "test -e /gone || echo gone", "gone"},
		{"bind", "--bind=" + share + ":/mnt/s", "cat /mnt/s/l1/l1; touch /mnt/s/w && echo yes", "l1\nyes"},
		{"bind read-only", "--bind-ro=" + share + ":/mnt/s", "touch /mnt/s/w2 2>/dev/null || echo no", "no"},
		{"overlay", "--overlay=" + overlay + share + "/up:/mnt/o", "cat /mnt/o/l1 /mnt/o/l2 /mnt/o/l3; touch /mnt/o/new", "l1\nl2\nl3"},
		{"overlay writes above", "--bind=" + share + "/up:/mnt/u", "test -e /mnt/u/new && echo yes", "yes"},
		{"overlay read-only", "--overlay-ro=" + overlay + "/mnt/o", "cat /mnt/o/l2; touch /mnt/o/n 2>/dev/null || echo no", "l2\nno"},
		{"inaccessible", "--inaccessible=/etc/passwd", "stat -c %a /etc/passwd", "0"},
		{"tmpfs", "--tmpfs=/mnt/t:mode=1700,noexec", "stat -c %a /mnt/t; grep -c '/mnt/t.*noexec' /proc/mounts", "1700\n1"},
		{"credential", "--set-credential=a:b --user=u1 --no-new-privileges=yes", "cat $CREDENTIALS_DIRECTORY/a", "b"},
		{"no capabilities", "--drop-capability=all", "grep -c 'CapEff:.0000000000000000' /proc/self/status", "1"},
		{"limits", "--rlimit=NOFILE=200:300", "ulimit -n; ulimit -Hn", "200\n300"},
		{"oom score", "--oom-score-adjust=300", "cat /proc/self/oom_score_adj", "300"},
		{"suppressed sync", "--suppress-sync=yes", "sync && echo yes", "yes"},
		{"only the streams are open", "", "for n in 0 1 2 3 4 5 6 7 8 9; do test -e /proc/1/fd/$n && echo $n; done", "0\n1\n2"},
		{"no /proc/sys", "", "(echo 1 > /proc/sys/kernel/panic) 2>/dev/null || echo no", "no"},
		{"no host disk", "", "mknod /b b 8 0 2>/dev/null; dd if=/b of=/dev/null count=1 2>/dev/null || echo no", "no"},
		{"program can't be written", "--as-pid2", "(echo x > /proc/1/exe) 2>/dev/null || echo no; cat /proc/1/comm", "no\n(sd-stubinit)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, code := b.run(t, strings.Fields(test.options), "sh", "-c", test.script)
			if got != test.want || code != 0 && test.name != "only the streams are open" {
				t.Errorf("got %q, exit status %d; want %q", got, code, test.want)
			}
		})
	}
	if left, _ := filepath.Glob(filepath.Join(b.dir, ".#*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Each ends with status 1 and a message, and leaves nothing beside the tree.
func TestMachineRefused(t *testing.T) {
	b := newBench(t)
	for _, options := range []string{
		"--user=nobody-here", "--chdir=/nowhere", "--bind=/nowhere", "--bind=:/x --bind=/nowhere", "--inaccessible=/nowhere",
		"--overlay=/nowhere:/usr:/mnt", "--overlay=+/etc::/mnt --bind=/nowhere", "-x --bind=/nowhere", "-x -U --user=nobody-here",
		"--port=80", "--network-zone=a --network-bridge=b", "--network-interface=nowhere0", "--tmpfs=/mnt:size=foo",
		"--keep-unit --slice=a", "--private-users=pick --private-users-ownership=chown --read-only",
	} {
		got, code := b.run(t, strings.Fields(options), "true")
		if code != 1 || got == "" {
			t.Errorf("%s: got exit status %d and %q; want 1 and a message", options, code, got)
		}
	}
	for _, pattern := range []string{b.dir + "/.#*", "/var/tmp/nspawn-temp-+*", b.tree + "/.#*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

// A getent of the image's must not get what the payload does not have.
func TestHostileGetent(t *testing.T) {
	b := newBench(t)
	b.write(t, "usr/bin/getent", "#!/bin/sh\ngrep -E 'CapPrm|CapBnd|NoNewPrivs|^Seccomp:' /proc/self/status > /seen\n"+
		"sleep 1000 >/dev/null 2>&1 &\necho u1:x:1000:1000::/home/u1:/bin/sh\n", 0o755)
	got, code := b.run(t, []string{"--user=u1"}, "sh", "-c", "id -u; echo /proc/[0-9]*")
	if code != 0 || !strings.HasPrefix(got, "1000\n/proc/1") || strings.Count(got, "/proc/") > 2 {
		t.Errorf("got %q, exit status %d; want user 1000 and nothing else running", got, code)
	}
	seen, err := os.ReadFile(filepath.Join(b.tree, "seen"))
	if err != nil {
		t.Fatal(err)
	}
	want := "CapPrm:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n"
	if string(seen) != want {
		t.Errorf("rights of the image's getent: got %q, want %q", seen, want)
	}
}
