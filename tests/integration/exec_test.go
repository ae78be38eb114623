//go:build integration

package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// execMachine starts a machine that has no service manager inside.
func execMachine(t *testing.T, h *host.Host, name string, options ...string) {
	t.Helper()
	h.BusyboxTree(t, name)
	args := append([]string{"systemd-run", "-q", "--unit=" + name, "-p", "KillMode=mixed", "systemd-nspawn", "-q", "-M", name, "-a"}, options...)
	h.MustRun(t, append(args, "sleep", "100000")...)
	host.Eventually(t, 30*time.Second, func() error {
		if r := h.Try("machinectl", "show", name, "-p", "State"); !strings.Contains(r.Stdout, "running") {
			return fmt.Errorf("%v", r)
		}
		if _, err := os.Stat(h.Path("/run/systemd/nspawn/exec/" + name)); err != nil {
			return err
		}
		return nil
	})
}

// TestExec runs programs in machines without a service manager: statuses, signals,
// streams, users.
func TestExec(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		for name, options := range map[string][]string{"users": {"-U", "--private-network"}, "root": nil} {
			t.Run(name, func(t *testing.T) {
				execMachine(t, h, name, options...)
				exec := func(args ...string) host.Result {
					return h.Try(append([]string{"machinectl", "exec"}, args...)...)
				}
				t.Run("statuses", func(t *testing.T) { execStatuses(t, h, name) })
				t.Run("streams", func(t *testing.T) { execStreams(t, h, name) })
				t.Run("user", func(t *testing.T) {
					for _, tt := range []struct{ user, want string }{
						{"root", "uid=0(root) gid=0(root)"}, {"user", "uid=1000(user) gid=1000(user) groups=100(users),101(extra),1000(user)"},
						{"1000", "uid=1000(user)"}, {"4711", "uid=4711 gid=4711"},
					} {
						if r := exec("-u", tt.user, name, "id"); r.Exit != 0 || !strings.Contains(r.Stdout, tt.want) {
							t.Errorf("user %s: %v, want %q", tt.user, r, tt.want)
						}
					}
					if r := exec("-u", "nobody-knows", name, "id"); r.Exit != 125 || !strings.Contains(r.Stderr, "not known in the machine") {
						t.Errorf("unknown user: %v", r)
					}
					r := exec("-E", "A=b c", "--chdir", "/var/tmp", "-u", "user", name, "sh", "-c", "echo $A:$PWD:$HOME:$USER:$container")
					if r.Stdout != "b c:/var/tmp:/home/user:user:systemd-nspawn\n" {
						t.Errorf("environment: %v", r)
					}
				})
				t.Run("rights", func(t *testing.T) { execRights(t, h, name) })
				t.Run("signals", func(t *testing.T) {
					r := h.Try("sh", "-c", `machinectl exec "$0" sh -c 'trap "echo caught; exit 7" USR1; echo ready; while :; do sleep 0.1; done' >/tmp/out-"$0" & p=$!
for i in $(seq 100); do grep -q ready /tmp/out-"$0" && break; sleep 0.1; done; kill -USR1 $p; wait $p; echo "status $?"; cat /tmp/out-"$0"`, name)
					match(t, r.Stdout, `^status 7$`, `^caught$`)
				})
				t.Run("polkit", func(t *testing.T) { execPolkit(t, h, name) })
				t.Run("left", func(t *testing.T) {
					// Whoever is gone waits for nothing.
					h.Try("timeout", "-s", "KILL", "1", "machinectl", "exec", name, "sleep", "4242")
					host.Eventually(t, 10*time.Second, func() error {
						if r := exec(name, "ps"); strings.Contains(r.Stdout, "4242") {
							return fmt.Errorf("still there: %v", r)
						}
						return nil
					})
				})
				t.Run("terminal", func(t *testing.T) {
					r := h.RunInput(context.Background(), strings.NewReader("exit 5\n"), "machinectl", "exec", "-t", name, "sh", "-c", "tty; read x; $x")
					if r.Exit != 5 || !strings.Contains(r.Stdout, "/dev/pts/") {
						t.Errorf("terminal: %v", r)
					}
				})
				h.MustRun(t, "systemctl", "stop", name)
			})
		}
		waitGone(t, h)
		unchanged(t, h, before)
	})
}

// execPolkit: users are who a rule says, about what it says.
func execPolkit(t *testing.T, h *host.Host, name string) {
	if r := h.TryAs("alice", "machinectl", "--no-ask-password", "exec", name, "id"); r.Exit == 0 || r.Stdout != "" {
		t.Errorf("without a rule: %v", r)
	}
	h.WriteFile(t, "/etc/polkit-1/rules.d/exec.rules", `polkit.addRule(function(action, subject) {
	if (action.id == "org.freedesktop.machine1.shell" && subject.user == "alice" && action.lookup("machine") == "`+name+`" &&
	    action.lookup("user") == "user" && action.lookup("program") == "id" && action.lookup("command_line") == "id -u") return polkit.Result.YES;
});`, 0o644)
	defer h.MustRun(t, "rm", "/etc/polkit-1/rules.d/exec.rules")
	host.Eventually(t, 10*time.Second, func() error { // polkitd reads its rules again
		if r := h.TryAs("alice", "machinectl", "exec", "-u", "user", name, "id", "-u"); r.Exit != 0 || r.Stdout != "1000\n" {
			return fmt.Errorf("with a rule: %v", r)
		}
		return nil
	})
	for _, args := range [][]string{{"-u", "root", name, "id", "-u"}, {"-u", "user", name, "sh", "-c", "id"}, {"-u", "user", name, "id"}} {
		if r := h.TryAs("alice", append([]string{"machinectl", "--no-ask-password", "exec"}, args...)...); r.Exit == 0 || r.Stdout != "" {
			t.Errorf("%v: %v", args, r)
		}
	}
}

func execStatuses(t *testing.T, h *host.Host, name string) {
	r := h.Try("sh", "-c", `for i in $(seq 0 255); do machinectl exec "$0" sh -c "exit $i"; echo $?; done`, name)
	var want strings.Builder
	for i := range 256 {
		fmt.Fprintln(&want, i)
	}
	if r.Stdout != want.String() {
		t.Errorf("statuses 0 to 255: %v", r)
	}
	for _, signal := range []int{1, 2, 6, 9, 11, 15} {
		if r := h.Try("machinectl", "exec", name, "sh", "-c", "kill -"+strconv.Itoa(signal)+" $$"); r.Exit != 128+signal {
			t.Errorf("signal %d: %v", signal, r)
		}
	}
	for program, want := range map[string]int{"nothing-of-that-name": 127, "/nowhere": 127, "/etc/passwd": 126} {
		if r := h.Try("machinectl", "exec", name, program); r.Exit != want || r.Stderr == "" {
			t.Errorf("%s: %v, want %d", program, r, want)
		}
	}
	if r := h.Try("machinectl", "exec", "--chdir=/nowhere", name, "true"); r.Exit != 125 || !strings.Contains(r.Stderr, "/nowhere") {
		t.Errorf("directory: %v", r)
	}
}

func execStreams(t *testing.T, h *host.Host, name string) {
	r := h.Try("machinectl", "exec", name, "sh", "-c", "echo out; echo err >&2; [ -t 0 ] || [ -t 1 ] || echo none")
	if r.Stdout != "out\nnone\n" || r.Stderr != "err\n" {
		t.Errorf("split: %v", r)
	}
	size := 100 << 20
	if os.Getenv("MACHINED_LONG") != "" {
		size = 1 << 30
	}
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i ^ i>>8 ^ i>>16)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r = h.RunInput(ctx, bytes.NewReader(data), "machinectl", "exec", name, "cat")
	if r.Exit != 0 || sha256.Sum256([]byte(r.Stdout)) != sha256.Sum256(data) || r.Stderr != "" {
		t.Errorf("%d bytes came back as %d: exit %d, %q", size, len(r.Stdout), r.Exit, r.Stderr)
	}
}

// execRights compares with what the payload has.
func execRights(t *testing.T, h *host.Host, name string) {
	const show = `grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Gid|SigBlk|SigIgn)' /proc/%s/status; grep -E -v '^(Max pending|Max proc)' /proc/%s/limits; cat /proc/%s/uid_map /proc/%s/oom_score_adj; readlink /proc/%s/ns/*; cat /proc/%s/cgroup`
	of := func(pid string) string {
		r := h.Try("machinectl", "exec", name, "sh", "-c", strings.ReplaceAll(show, "%s", pid))
		if r.Exit != 0 || r.Stdout == "" {
			t.Fatal(r)
		}
		return r.Stdout
	}
	if payload, program := of("2"), of("self"); payload != program {
		t.Errorf("the payload has\n%s\na program beside it\n%s", payload, program)
	}
	// Nothing of ours is open in it, and nobody writes to our program.
	r := h.Try("machinectl", "exec", name, "sh", "-c", "ls /proc/self/fd | wc -l; for i in $(seq 300); do for e in /proc/[0-9]*/exe; do (: >>$e) 2>/dev/null && readlink $e; done; done | grep -v busybox")
	if !strings.HasPrefix(r.Stdout, "4\n") || strings.Contains(r.Stdout, "spawn") {
		t.Errorf("descriptors, programs written to: %v", r)
	}
}
