//go:build integration

package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/tests/host"
)

// crashRounds is how many moments a crash test tries of each operation:
// MACHINED_TEST_CRASH, or few.
func crashRounds(t *testing.T, few int) int {
	t.Helper()
	text := os.Getenv("MACHINED_TEST_CRASH")
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("MACHINED_TEST_CRASH=%q is no number of rounds", text)
	}
	return n
}

// crashScript makes a tree that takes some time to copy, and the function sum:
// one line that changes with anything in a tree.
const crashScript = `
mkdir -p "$1/usr/lib" "$1/etc"; echo ID=x >"$1/usr/lib/os-release"
for d in 1 2 3 4 5 6 7 8; do
	mkdir "$1/$d"
	for f in $(seq 40); do head -c $((RANDOM / 2)) /dev/urandom >"$1/$d/$f"; done
done
head -c 4000000 /dev/urandom >"$1/large"; ln "$1/large" "$1/hard"; chown -R 7:8 "$1/3"; chmod 4711 "$1/4/1"
`

// sums tells, for each image in a pool that is not a temporary one, a sum of all
// that is in it.
func sums(t *testing.T, h *host.Host, pool string) map[string]string {
	t.Helper()
	out := h.Shell(t, "cd "+pool+`; for n in *; do [ -d "$n" ] && [ "$n" != lost+found ] && [ "$n" != machined.v ] || continue
echo "$n $( { cd "$n"; find . -mindepth 1 -printf '%P %y %m %U:%G %n %s\n' | sed 's/ d \(.*\) [0-9]*$/ d \1/' | sort; find . -type f -print0 | sort -z | xargs -0 sha256sum; } | sha256sum | cut -c1-16)"; done`)
	got := map[string]string{}
	for line := range strings.Lines(out) {
		name, sum, _ := strings.Cut(strings.TrimSpace(line), " ")
		got[name] = sum
	}
	return got
}

// operation is one change of the pool, from a state to one of two.
type operation struct {
	method string // of Manager, or with a leading "own." of our own
	args   []any
	before []string // images that must be there when it begins
	after  []string // and when it has ended
}

var operations = []operation{
	{"CloneImage", []any{"base", "one", false}, []string{"base"}, []string{"base", "one"}},
	{"RenameImage", []any{"one", "two"}, []string{"base", "one"}, []string{"base", "two"}},
	{"RemoveImage", []any{"two"}, []string{"base", "two"}, []string{"base"}},
}

// layerOperations are changes of images that share files by overlayfs; the last
// makes base the plain directory again that it was.
var layerOperations = []operation{
	{"own.CloneImage", []any{"base", "one", overlayOptions()}, []string{"base"}, []string{"base", "one"}},
	{"RenameImage", []any{"one", "two"}, []string{"base", "one"}, []string{"base", "two"}},
	{"RemoveImage", []any{"two"}, []string{"base", "two"}, []string{"base"}},
	{"own.FlattenImage", []any{"base"}, []string{"base"}, []string{"base"}},
}

// run calls the operation's method.
func (op *operation) run(conn *godbus.Conn) error {
	if method, own := strings.CutPrefix(op.method, "own."); own {
		return callOwn(conn, method, op.args...).Err
	}
	return call(conn, op.method, op.args...).Err
}

// TestKilledChangingImages kills the daemon in the midst of changes. Each image is
// whole under its old name or its new one, or not there; the next daemon removes
// what was half done, and does the change anew.
func TestKilledChangingImages(t *testing.T) {
	ours(t)
	for name, ops := range map[string][]operation{"copies": operations, "layers": layerOperations} {
		t.Run(name, func(t *testing.T) { killedChanging(t, ops) })
	}
}

func killedChanging(t *testing.T, operations []operation) {
	rounds := crashRounds(t, 4)
	h := host.Boot(t, host.Config{Suite: host.Trixie})
	mountPool(t, h, "ext4")
	t.Cleanup(func() { h.Shell(t, "for n in /var/lib/machines/*; do mountpoint -q $n && umount $n; done; true") })
	h.MustRun(t, "bash", "-ec", crashScript, "sh", "/var/lib/machines/base")
	whole := sums(t, h, "/var/lib/machines")["base"]
	conn := h.Bus(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	answered(t, conn)
	took := make([]time.Duration, len(operations))
	for i, op := range operations {
		start := time.Now()
		if err := op.run(conn); err != nil {
			t.Fatalf("%s: %v", op.method, err)
		}
		took[i] = time.Since(start)
	}
	t.Logf("undisturbed: %v", took)
	for round := range rounds {
		for i, op := range operations {
			pid := h.DaemonPID(t)
			delay := time.Duration(rnd.Int64N(int64(took[i]) * 6 / 5))
			var wg sync.WaitGroup
			wg.Go(func() { _ = op.run(conn) })
			<-time.After(delay) // the moment is the input here
			h.MustRun(t, "kill", "-KILL", pid)
			wg.Wait()
			answered(t, conn)
			host.Eventually(t, 10*time.Second, func() error {
				if left := h.Shell(t, "cd /var/lib/machines; ls -A . machined.v/overlays 2>/dev/null | grep '^[.]#' || true"); left != "" {
					return fmt.Errorf("round %d: %s killed after %v: left: %s", round, op.method, delay, left)
				}
				return nil
			})
			state := sums(t, h, "/var/lib/machines")
			if problem := op.check(state, whole); problem != "" {
				t.Fatalf("round %d: %s killed after %v: %s", round, op.method, delay, problem)
			}
			if slices.Equal(names(state), op.before) {
				if err := op.run(conn); err != nil {
					t.Fatalf("round %d: %s after a kill: %v", round, op.method, err)
				}
			}
		}
	}
}

// answered waits until a daemon answers.
func answered(t *testing.T, conn *godbus.Conn) {
	t.Helper()
	host.Eventually(t, 15*time.Second, func() error { return call(conn, "ListImages").Err })
}

func names(state map[string]string) []string {
	var list []string
	for name := range state {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// check says what is wrong with a state in which the operation was interrupted.
func (op *operation) check(state map[string]string, whole string) string {
	for name, sum := range state {
		if sum != whole {
			return fmt.Sprintf("%s is not whole", name)
		}
	}
	if got := names(state); !slices.Equal(got, op.before) && !slices.Equal(got, op.after) {
		return fmt.Sprintf("there are %v, want %v or %v", got, op.before, op.after)
	}
	return ""
}

// TestPowerCutChangingImages cuts the power in the midst of changes: the file
// behind the pool's file system is copied, at one moment, as the disk would be
// found, then checked and mounted.
func TestPowerCutChangingImages(t *testing.T) {
	ours(t)
	rounds := crashRounds(t, 4) * len(operations)
	h := host.Boot(t, host.Config{Suite: host.Trixie})
	// A file system that copies a file at once holds the file of the one that is cut.
	outer := "/var/tmp/outer"
	h.Shell(t, "mkdir "+outer+"; truncate -s 4G "+outer+".img")
	mkfs(t, "mkfs.xfs", "-qf", "-m", "reflink=1", h.Path(outer+".img"))
	h.Shell(t, "mount -o loop "+outer+".img "+outer+"; truncate -s 200M "+outer+"/disk")
	mkfs(t, "mkfs.ext4", "-qF", h.Path(outer+"/disk"))
	h.Shell(t, "mount -o loop "+outer+"/disk /var/lib/machines; chmod 700 /var/lib/machines")
	t.Cleanup(func() { h.Shell(t, "umount /var/lib/machines; umount "+outer) })
	h.MustRun(t, "bash", "-ec", crashScript, "sh", "/var/lib/machines/base")
	h.Shell(t, "sync -f /var/lib/machines")
	whole := sums(t, h, "/var/lib/machines")["base"]
	conn := h.Bus(t)
	answered(t, conn)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	var changes int
	wg.Go(func() {
		for {
			for _, op := range operations {
				select {
				case <-stop:
					return
				default:
				}
				if err := call(conn, op.method, op.args...).Err; err != nil {
					t.Errorf("%s: %v", op.method, err)
					return
				}
				changes++
			}
		}
	})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for round := range rounds {
		<-time.After(time.Duration(rnd.Int64N(int64(150 * time.Millisecond)))) // the moment is the input here
		h.Shell(t, fmt.Sprintf("cp --reflink=always %s/disk %s/cut%d", outer, outer, round))
	}
	close(stop)
	wg.Wait()
	seen := map[string]int{}
	for round := range rounds {
		file := fmt.Sprintf("%s/cut%d", outer, round)
		if out, err := exec.Command("e2fsck", "-fy", h.Path(file)).CombinedOutput(); err != nil {
			if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() > 1 {
				t.Fatalf("e2fsck of cut %d: %v: %s", round, err, out)
			}
		}
		mnt := path.Join("/var/tmp", path.Base(file))
		h.Shell(t, "mkdir -p "+mnt+"; mount -o loop "+file+" "+mnt)
		state := sums(t, h, mnt)
		h.Shell(t, "umount "+mnt+"; rm "+file)
		for name, sum := range state {
			if sum != whole {
				t.Errorf("cut %d: %s is not whole", round, name)
			}
		}
		if _, ok := state["base"]; !ok || len(state) > 2 {
			t.Errorf("cut %d: there are %v", round, names(state))
		}
		seen[fmt.Sprint(names(state))]++
	}
	t.Logf("%d changes, found: %v", changes, seen)
}

func mkfs(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
}
