package registry

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeStore keeps copies of descriptors, as a service manager does.
type fakeStore struct {
	mu   sync.Mutex
	kept map[string][]*os.File
	rest int // calls of DropRest
}

func (s *fakeStore) Keep(name string, fds ...int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fd := range fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		s.kept[name] = append(s.kept[name], os.NewFile(uintptr(dup), name))
	}
	return nil
}

func (s *fakeStore) Take(name string) []*os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*os.File
	for _, f := range s.kept[name] {
		if dup, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3); err == nil {
			out = append(out, os.NewFile(uintptr(dup), name))
		}
	}
	return out
}

func (s *fakeStore) Drop(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.kept[name] {
		_ = f.Close()
	}
	delete(s.kept, name)
	return nil
}

func (s *fakeStore) DropRest() error { s.rest++; return nil }

func (s *fakeStore) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name, files := range s.kept {
		if len(files) > 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (s *fakeStore) want(t *testing.T, names ...string) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got := s.names()
		if slices.Equal(got, names) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("kept: got %v, want %v", got, names)
		}
	}
}

// TestKept: the processes of machines outlive the registry in the store, and
// tell who is who when it comes back.
func TestKept(t *testing.T) {
	dir, store := t.TempDir(), &fakeStore{kept: map[string][]*os.File{}}
	backend := newFake()
	start := func() *Registry {
		reg := New(Config{StateDir: filepath.Join(dir, "machines"), Backend: backend, Store: store})
		if err := reg.Load(context.Background()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(reg.Close)
		return reg
	}
	reg := start()
	one, endOne := request(t, "one")
	two, _ := request(t, "two")
	for _, req := range []CreateRequest{one, two} {
		if _, err := reg.Create(context.Background(), req); err != nil {
			t.Fatal(err)
		}
	}
	store.want(t, "one", "two")
	reg.Close()
	store.want(t, "one", "two")

	// A file whose recorded id is another's: only what was kept knows better.
	path := filepath.Join(dir, "machines/two")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "LEADER_PIDFDID=") {
			line = "LEADER_PIDFDID=1\n"
		}
		lines = append(lines, line)
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o644); err != nil {
		t.Fatal(err)
	}
	endOne()
	backend.mu.Lock()
	backend.active["machine-one.scope"] = false
	backend.mu.Unlock()
	reg = start()
	if _, err := reg.Get("one"); err == nil {
		t.Error("a machine whose leader has ended is there")
	}
	m, err := reg.Get("two")
	if err != nil || m.Leader.FDID == 1 {
		t.Errorf("the machine whose leader was kept: %+v, %v", m.Leader, err)
	}
	store.want(t, "two")
	if store.rest != 2 {
		t.Errorf("the rest was dropped %d times, want once a start", store.rest)
	}
	if err := reg.Unregister(context.Background(), "two"); err != nil {
		t.Fatal(err)
	}
	store.want(t)
}
