package spawn

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"machined/internal/pack"
	"machined/internal/pathlock"
)

// What one program owes another does, with the descriptors that it has inherited.
func TestChoresAreHandedOver(t *testing.T) {
	parent := t.TempDir()
	first := &machine{}
	dir, err := first.runDir(parent, "nspawn-temp-", 0o700)
	if err != nil {
		t.Fatal(err)
	}
	lockFile := filepath.Join(parent, "lock")
	lock, err := pathlock.File(lockFile, false)
	if err != nil {
		t.Fatal(err)
	}
	first.oweLocks(lock.Files())
	file := filepath.Join(parent, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	first.owe(chore{Kind: choreRemove, Path: file})
	first.undoOurs(func() { t.Error("what ends with the program was done") })
	chores, ok := first.handOver()
	if !ok || len(chores) != 3 {
		t.Fatalf("handOver: got %v, %v, want three chores", chores, ok)
	}
	// The other program has the same numbers; here they have to be others.
	for i := range chores {
		for j := range chores[i].Files {
			fd, err := unix.Dup(chores[i].Files[j].FD)
			if err != nil {
				t.Fatal(err)
			}
			chores[i].Files[j].FD = fd
		}
	}
	var received restState
	if err := pack.Unmarshal(pack.Marshal(restState{Chores: chores}), &received); err != nil {
		t.Fatal(err)
	}
	second := &machine{}
	second.adopt(received.Chores)
	second.cleanUp(false)
	for _, path := range []string{dir, lockFile, file} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s: got %v, want it gone", path, err)
		}
	}
	first.undo(func() {})
	if _, ok := first.handOver(); ok {
		t.Error("what only this program can do was handed over")
	}
	for _, u := range first.undos {
		for _, f := range u.held {
			_ = f.Close()
		}
	}
}

func TestStateSurvivesBeingWritten(t *testing.T) {
	fd, err := unix.MemfdCreate("machine", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	t.Setenv("MACHINED_TEST", "before")
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"a longer text", "short"} {
		s := restState{Env: append(os.Environ(), "MACHINED_TEST="+text), Name: string(name[:len(name)-1]), PID: 7}
		if err := s.write(fd); err != nil {
			t.Fatal(err)
		}
		got, err := readState(fd)
		if err != nil || got.PID != 7 || os.Getenv("MACHINED_TEST") != text {
			t.Errorf("readState: got %+v, %v, environment %q", got, err, os.Getenv("MACHINED_TEST"))
		}
	}
}

// A machine that is started again has its directories still, and they go away with it.
func TestKeptOverReboots(t *testing.T) {
	parent := t.TempDir()
	m := &machine{}
	once, err := m.runDir(parent, "nspawn-temp-", 0o700)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := m.tempDir()
	if err != nil {
		t.Fatal(err)
	}
	id := m.drawnID()
	m.cleanUp(true)
	if _, err := os.Lstat(once); !os.IsNotExist(err) {
		t.Errorf("what is of one run: got %v, want it gone", err)
	}
	next := &machine{undos: m.undos, kept: m.kept}
	if again, err := next.tempDir(); err != nil || again != dir {
		t.Errorf("tempDir after a reboot: got %q, %v, want %q", again, err, dir)
	}
	if got := next.drawnID(); got != id {
		t.Errorf("ID after a reboot: got %x, want %x", got, id)
	}
	if len(next.fresh) > 0 {
		t.Errorf("fresh: got %q, want none", next.fresh)
	}
	next.cleanUp(false)
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("what is kept: got %v in the end, want it gone", err)
	}
}
