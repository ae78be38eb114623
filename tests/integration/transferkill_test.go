//go:build integration

package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machined/tests/host"
)

// TestKilledTransfers kills importd, or the worker, in the midst of an import: there is
// no image then but a whole one, the client is told, what was half done is gone, and
// the next import of that name works.
func TestKilledTransfers(t *testing.T) {
	ours(t)
	t.Parallel()
	rounds := crashRounds(t, 2)
	h := host.Boot(t, host.Config{Suite: host.Trixie})
	// It starts more often here than systemd lets services that keep dying.
	h.WriteFile(t, "/run/systemd/system/systemd-importd.service.d/often.conf", "[Unit]\nStartLimitIntervalSec=0\n", 0o644)
	h.MustRun(t, "systemctl", "daemon-reload")
	h.MustRun(t, "bash", "-ec", crashScript, "sh", "/srv/base")
	h.Shell(t, "tar -cf /srv/base.tar -C /srv/base .; tar -czf /srv/base.tar.gz -C /srv/base .; mkfifo /srv/fifo")
	archive, err := os.ReadFile(h.Path("/srv/base.tar"))
	if err != nil {
		t.Fatal(err)
	}
	compressed, err := os.ReadFile(h.Path("/srv/base.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	h.MustRun(t, "machinectl", "import-tar", "/srv/base.tar", "base")
	whole := sums(t, h, "/var/lib/machines")["base"]
	h.MustRun(t, "machinectl", "remove", "base")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	k := &killing{h: h, rnd: rand.New(rand.NewPCG(seed, 0))}
	for round := range rounds {
		for who, victim := range map[string]string{"importd": "^/usr/lib/systemd/systemd-importd", "worker": workers} {
			for verb, data := range map[string][]byte{"import-tar": archive, "import-tar gz": compressed, "import-raw": archive} {
				verb, _, _ = strings.Cut(verb, " ")
				t.Run(fmt.Sprintf("%d %s %s", round, verb, who), func(t *testing.T) {
					t.Cleanup(func() {
						if t.Failed() { // the next one begins anew
							k.h.Try("machinectl", "remove", "new")
						}
					})
					k.midway(t, verb, victim, data)
					k.atTheEnd(t, verb, victim, data, whole)
				})
			}
		}
	}
	t.Logf("at the end: %d of %d became images", k.made, k.ends)
}

type killing struct {
	h          *host.Host
	rnd        *rand.Rand
	ends, made int
}

// begin starts an import that reads what is written to the file.
func (k *killing) begin(t *testing.T, verb string) (client *host.Process, in *os.File) {
	t.Helper()
	client = k.h.Start(t, "machinectl", verb, "/srv/fifo", "new")
	in, err := os.OpenFile(k.h.Path("/srv/fifo"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return client, in
}

// workers matches the command lines of workers.
const workers = "^machine-importd-worker"

// kill kills all processes whose command line matches, of which there must be one, and
// waits until there is no worker: one that has not noticed yet would take the end of
// what it reads for the end of the archive.
func (k *killing) kill(t *testing.T, victim string) {
	t.Helper()
	k.h.MustRun(t, "pkill", "-KILL", "-f", victim)
	host.Eventually(t, 10*time.Second, func() error {
		if r := k.h.Try("pgrep", "-f", workers); r.Exit != 1 {
			return fmt.Errorf("a worker is left: %v", r)
		}
		return nil
	})
}

// midway kills when a part of the archive has come, which is so for sure: the rest of
// it is written, or not, later.
func (k *killing) midway(t *testing.T, verb, victim string, data []byte) {
	t.Helper()
	client, in := k.begin(t, verb)
	defer in.Close()
	part := 1<<20 + k.rnd.IntN(len(data)-2<<20)
	if _, err := in.Write(data[:part]); err != nil {
		t.Fatal(err)
	}
	if temp := k.temporary(t); len(temp) == 0 {
		t.Fatalf("%d bytes of the archive have come, and nothing is made of them", part)
	}
	k.kill(t, victim)
	in.Close()
	if exit := client.Wait(t); exit != 1 {
		t.Errorf("the client ends with %d: %s", exit, client.Output())
	}
	match(t, client.Output(), `The transfer service has ended before|The process of this transfer was ended by signal SIGKILL`)
	k.settled(t)
	if _, err := os.Lstat(filepath.Join(k.h.Machines(), "new")); err == nil {
		t.Error("there is an image of a part of the archive")
	}
	if _, err := os.Lstat(filepath.Join(k.h.Machines(), "new.raw")); err == nil {
		t.Error("there is an image of a part of the archive")
	}
}

// atTheEnd kills when all of the archive has come, while it becomes an image or has
// become one.
func (k *killing) atTheEnd(t *testing.T, verb, victim string, data []byte, whole string) {
	t.Helper()
	client, in := k.begin(t, verb)
	if _, err := in.Write(data); err != nil {
		t.Fatal(err)
	}
	in.Close()
	<-time.After(time.Duration(k.rnd.Int64N(int64(120 * time.Millisecond)))) // the moment is the input here
	r := k.h.Try("pkill", "-KILL", "-f", victim)
	exit := client.Wait(t)
	k.settled(t)
	k.ends++
	name := "new"
	if verb == "import-raw" {
		name += ".raw"
	}
	_, err := os.Lstat(filepath.Join(k.h.Machines(), name))
	switch {
	case err != nil && exit == 0:
		t.Errorf("the client was told that it is done, and there is nothing: %v", r)
		return
	case err != nil:
		k.h.MustRun(t, "machinectl", verb, "/srv/base.tar", "new")
	default:
		k.made++
	}
	if verb == "import-tar" {
		if got := sums(t, k.h, "/var/lib/machines")["new"]; got != whole {
			t.Error("the image is not whole")
		}
	} else if r := k.h.Try("cmp", "/srv/base.tar", "/var/lib/machines/new.raw"); r.Exit != 0 {
		t.Error(r)
	}
	k.h.MustRun(t, "machinectl", "remove", "new")
}

// temporary lists what is being built.
func (k *killing) temporary(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(k.h.Machines(), ".#*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// settled waits until no transfer is left, and nothing that one was building.
func (k *killing) settled(t *testing.T) {
	t.Helper()
	host.Eventually(t, 20*time.Second, func() error {
		r := k.h.Try("machinectl", "list-transfers")
		if r.Exit != 0 || !strings.Contains(r.Stdout, "No transfers.") {
			return fmt.Errorf("%v", r)
		}
		if temp := k.temporary(t); len(temp) > 0 {
			return fmt.Errorf("left: %v: %w", temp, unix.ENOTEMPTY)
		}
		return nil
	})
}
