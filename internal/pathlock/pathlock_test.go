package pathlock

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestImage(t *testing.T) {
	t.Parallel()
	l := Locks{Dir: filepath.Join(t.TempDir(), "locks")}
	img := filepath.Join(t.TempDir(), "deb")
	if err := os.Mkdir(img, 0o755); err != nil {
		t.Fatal(err)
	}
	ex, err := l.Image(img, true)
	if err != nil {
		t.Fatal(err)
	}
	local := filepath.Join(filepath.Dir(img), ".#deb.lck")
	if _, err := os.Stat(local); err != nil {
		t.Error(err)
	}
	for _, exclusive := range []bool{true, false} {
		if _, err := l.Image(img, exclusive); !errors.Is(err, ErrBusy) {
			t.Errorf("second lock, exclusive %v: got %v, want busy", exclusive, err)
		}
	}
	ex.Close()
	ex.Close()
	a, err := l.Image(img+"/", false)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Image(img, false)
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	if _, err := os.Stat(local); err != nil {
		t.Errorf("file went away with a sharer left: %v", err)
	}
	if _, err := l.Image(img, true); !errors.Is(err, ErrBusy) {
		t.Errorf("exclusive beside shared: %v", err)
	}
	b.Close()
	if _, err := os.Stat(local); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("file is left: %v", err)
	}
	if left, _ := os.ReadDir(l.Dir); len(left) != 0 {
		t.Errorf("left in %s: %v", l.Dir, left)
	}
}

// The same tree under another name is caught by the lock on its inode.
func TestSameInode(t *testing.T) {
	t.Parallel()
	l := Locks{Dir: filepath.Join(t.TempDir(), "locks")}
	dir := t.TempDir()
	for _, n := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(dir, n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	raw := filepath.Join(dir, "a", "x.raw")
	if err := os.WriteFile(raw, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(raw, filepath.Join(dir, "b", "y.raw")); err != nil {
		t.Fatal(err)
	}
	one, err := l.Image(raw, true)
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	if _, err := l.Image(filepath.Join(dir, "b", "y.raw"), true); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want busy", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "b", ".#y.raw.lck")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("refused lock left its file: %v", err)
	}
}

func TestHostAndNames(t *testing.T) {
	t.Parallel()
	l := Locks{Dir: filepath.Join(t.TempDir(), "locks")}
	if _, err := l.Image("/", true); !errors.Is(err, ErrBusy) {
		t.Errorf("exclusive /: %v", err)
	}
	if lock, err := l.Image("/", false); err != nil || len(lock.Files()) != 0 {
		t.Errorf("shared /: %v", err)
	}
	if _, err := l.Image("rel", false); err == nil {
		t.Error("relative path accepted")
	}
	if _, err := l.Image("/dev/null", false); err == nil {
		t.Error("character device accepted")
	}
	n, err := l.Name("x", true)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := l.Name("x", true); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v", err)
	}
	for _, bad := range []string{"", "..", "a/b"} {
		if _, err := l.Name(bad, true); err == nil || errors.Is(err, ErrBusy) {
			t.Errorf("name %q: %v", bad, err)
		}
	}
}

func TestOff(t *testing.T) {
	t.Setenv("SYSTEMD_NSPAWN_LOCK", "0")
	l := Locks{Dir: filepath.Join(t.TempDir(), "locks")}
	img := t.TempDir()
	for range 2 {
		lock, err := l.Image(img, true)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
	}
}
