//go:build integration

package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/tests/host"
)

// TestKilledDaemonAnswers kills the daemon, with its unit as it is shipped, in
// the midst of registrations and ends of machines. Each time the next caller is
// answered soon, and the daemon lists exactly the machines that the kernel has.
func TestKilledDaemonAnswers(t *testing.T) {
	ours(t)
	rounds := 50
	if testing.Short() {
		rounds = 10
	}
	onHosts(t, func(t *testing.T, h *host.Host) {
		machines(t, h) // starts the daemon
		before := snapshot(t, h)
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		k := &killRounds{h: h, conn: h.Bus(t), rnd: rand.New(rand.NewPCG(seed, 0)), machines: map[string]int{}}
		var answers []time.Duration
		for i := range rounds {
			answers = append(answers, k.round(t, i))
			if t.Failed() {
				t.FailNow()
			}
		}
		slices.Sort(answers)
		t.Logf("answered after a kill: median %v, slowest %v", answers[len(answers)/2], answers[len(answers)-1])
		for _, pid := range k.machines {
			h.Try("kill", "-KILL", strconv.Itoa(pid))
		}
		waitGone(t, h)
		unchanged(t, h, before)
	})
}

// killRounds is one host and the machines on it, each led by a sleeping process.
type killRounds struct {
	h        *host.Host
	conn     *godbus.Conn
	rnd      *rand.Rand
	machines map[string]int // leaders' PIDs in the host
}

// maxAnswer bounds how long a caller waits for a daemon that has just been
// killed. It takes a tenth of that; a host under load takes longer, and one that
// has locked the daemon out never answers before the bus's 25 s.
const maxAnswer = 5 * time.Second

// round registers two machines and ends one, kills the daemon meanwhile,
// returns how long the next answer took, and compares.
func (k *killRounds) round(t *testing.T, i int) time.Duration {
	t.Helper()
	pids := strings.Fields(k.h.Shell(t, "for i in 1 2; do setsid sleep 1000000 >/dev/null 2>&1 </dev/null & echo $!; done"))
	daemon, err := strconv.Atoi(k.h.DaemonPID(t))
	if err != nil || daemon == 0 {
		t.Fatalf("round %d: daemon's PID %d: %v", i, daemon, err)
	}
	var victim string
	for name := range k.machines {
		victim = name
		break
	}
	delay := time.Duration(k.rnd.Int64N(int64(30 * time.Millisecond)))
	created := make([]error, len(pids))
	var wg sync.WaitGroup
	for n, text := range pids {
		wg.Go(func() {
			leader, _ := strconv.ParseUint(text, 10, 32)
			name := fmt.Sprintf("k%d-%d", i, n)
			created[n] = call(k.conn, "CreateMachine", name, []byte{}, "test", "container", uint32(leader), "", []struct {
				Name  string
				Value godbus.Variant
			}{}).Err
		})
	}
	if victim != "" {
		wg.Go(func() { k.h.Try("kill", "-KILL", strconv.Itoa(k.machines[victim])) })
	}
	wg.Go(func() {
		<-time.After(delay) // the moment is the input here
		k.h.Try("kill", "-KILL", strconv.Itoa(daemon))
	})
	wg.Wait()
	took := k.answer(t, i)

	delete(k.machines, victim)
	host.Eventually(t, 10*time.Second, func() error {
		got := machines(t, k.h)
		want := k.scopes(t)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("round %d (killed after %v): listed %v, scopes %v, errors %v", i, delay, got, want, created)
		}
		for name := range k.machines {
			if !slices.Contains(got, name) {
				return fmt.Errorf("round %d: %s is lost: listed %v", i, name, got)
			}
		}
		return nil
	})
	listed := machines(t, k.h)
	for n, text := range pids {
		name := fmt.Sprintf("k%d-%d", i, n)
		pid, _ := strconv.Atoi(text)
		switch {
		case slices.Contains(listed, name):
			k.machines[name] = pid
		case created[n] == nil:
			t.Errorf("round %d: %s was created and is not listed: %v", i, name, listed)
		default:
			k.h.Try("kill", "-KILL", text)
		}
	}
	return took
}

// answer asks for the list until there is one. A call that meets the daemon
// while it dies fails at once; one that comes later waits for the next daemon.
func (k *killRounds) answer(t *testing.T, i int) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), maxAnswer)
		err := k.conn.Object(busName, busPath).CallWithContext(ctx, managerIf+".ListMachines", 0).Err
		cancel()
		took := time.Since(start)
		if name, _ := errorName(err); took > maxAnswer || err != nil && name != "org.freedesktop.DBus.Error.NoReply" {
			t.Errorf("round %d: answer after %v: %v", i, took, err)
			return took
		}
		if err == nil {
			return took
		}
	}
}

// scopes are the machines whose scope has a process.
func (k *killRounds) scopes(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob(k.h.Path("/sys/fs/cgroup/machine.slice/machine-*.scope"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range dirs {
		events, err := os.ReadFile(filepath.Join(d, "cgroup.events"))
		if err != nil || !strings.Contains(string(events), "populated 1") {
			continue
		}
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(d), "machine-"), ".scope")
		names = append(names, strings.ReplaceAll(name, `\x2d`, "-"))
	}
	slices.Sort(names)
	return names
}
