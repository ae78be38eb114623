package image

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"machined/internal/btrfs"
)

// onBtrfs mounts a fresh btrfs on a loop file for the test.
func onBtrfs(t *testing.T) string {
	t.Helper()
	return onLoop(t, "btrfs", "-q")
}

// onLoop mounts a fresh file system on a loop file for the test.
func onLoop(t *testing.T, fstype string, options ...string) string {
	t.Helper()
	needRoot(t)
	skip := func(reason string) {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	if _, err := exec.LookPath("mkfs." + fstype); err != nil {
		skip("needs mkfs." + fstype)
	}
	file := filepath.Join(t.TempDir(), fstype)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 256<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs."+fstype, append(options, file)...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %v: %s", fstype, err, out)
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", file, dir).CombinedOutput(); err != nil {
		skip("needs a loop device and " + fstype + ": " + string(out))
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

func TestSubvolumes(t *testing.T) {
	base := onBtrfs(t)
	ctx := context.Background()
	pool := filepath.Join(base, "pool")
	top, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = top.Close() }()
	if err := btrfs.Create(top, "pool"); err != nil {
		t.Fatal(err)
	}
	s := NewStore(Config{SearchPath: []string{pool}, PoolDir: pool, NspawnDirs: []string{}, LockDir: filepath.Join(base, "locks"), NoHost: true})
	if err := s.SetPoolLimit(ctx, 200<<20); err != nil {
		t.Fatal(err)
	}
	if got := s.PoolLimit(); got != 200<<20 {
		t.Errorf("pool limit = %d, want %d", got, 200<<20)
	}
	dir, err := os.Open(pool)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	if err := MakeTree(dir, "a"); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(pool, "a/etc/f"), "x")
	mkdirs(t, pool, "a/var/lib", "plain/etc")
	nest, err := os.Open(filepath.Join(pool, "a/var/lib"))
	if err != nil {
		t.Fatal(err)
	}
	err = btrfs.Create(nest, "machines")
	_ = nest.Close()
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(pool, "a/var/lib/machines/inner"), "y")
	if err := s.SetLimit(ctx, "a", 100<<20); err != nil {
		t.Fatal(err)
	}
	a, err := s.Get(ctx, "a")
	if err != nil || a.Type != TypeSubvolume || a.Limit != 100<<20 || a.Usage == Unknown || a.Created.IsZero() {
		t.Errorf("image = %+v, %v", a, err)
	}
	if err := s.Clone(ctx, "a", "b", true); err != nil {
		t.Fatal(err)
	}
	b, err := s.Get(ctx, "b")
	if err != nil || b.Type != TypeSubvolume || !b.ReadOnly || b.Limit != 100<<20 {
		t.Errorf("clone = %+v, %v", b, err)
	}
	if data, err := os.ReadFile(filepath.Join(pool, "b/var/lib/machines/inner")); err != nil || string(data) != "y" {
		t.Errorf("nested subvolume in clone: %q, %v", data, err)
	}
	if err := s.Clone(ctx, "plain", "c", false); err != nil {
		t.Fatal(err)
	}
	if c, err := s.Get(ctx, "c"); err != nil || c.Type != TypeSubvolume {
		t.Errorf("clone of a directory = %+v, %v, want a subvolume", c, err)
	}
	if err := s.Rename(ctx, "b", "d"); err != nil {
		t.Errorf("rename of a read-only subvolume: %v", err)
	}
	if err := s.SetReadOnly(ctx, "a", true); err != nil {
		t.Error(err)
	}
	if err := s.SetLimit(ctx, "plain", 1<<20); !errors.Is(err, ErrNotSupported) {
		t.Errorf("limit of a directory = %v, want ErrNotSupported", err)
	}
	for _, name := range []string{"a", "c", "d", "plain"} {
		if err := s.Remove(ctx, name); err != nil {
			t.Errorf("remove %q: %v", name, err)
		}
	}
	leftovers(t, pool)
	if left, _ := os.ReadDir(pool); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestSubvolumeCloneAtOnce is about subvolumes where nothing is counted: no name but the clone's
// is ever there, and what is in its place stays.
func TestSubvolumeCloneAtOnce(t *testing.T) {
	pool := onBtrfs(t)
	ctx := context.Background()
	s := NewStore(Config{SearchPath: []string{pool}, PoolDir: pool, NspawnDirs: []string{}, LockDir: t.TempDir(), NoHost: true})
	dir, err := os.Open(pool)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	for _, name := range []string{"flat", "deep"} {
		if err := MakeTree(dir, name); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(pool, name, "etc/f"), "x")
	}
	write(t, filepath.Join(pool, "flat.nspawn"), "[Exec]\n")
	deep, err := os.Open(filepath.Join(pool, "deep"))
	if err != nil {
		t.Fatal(err)
	}
	err = btrfs.Create(deep, "inner")
	_ = deep.Close()
	if err != nil {
		t.Fatal(err)
	}
	for name, atOnce := range map[string]bool{"flat": true, "deep": false} {
		img, err := s.Get(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		if done, err := s.cloneAtOnce(img, name+"-1", true); done != atOnce || err != nil {
			t.Errorf("clone of %s at once = %v, %v, want %v", name, done, err, atOnce)
		}
		if err := s.Clone(ctx, name, name+"-2", true); err != nil {
			t.Error(err)
		}
		if made, err := s.Get(ctx, name+"-2"); err != nil || made.Type != TypeSubvolume || !made.ReadOnly {
			t.Errorf("clone = %+v, %v", made, err)
		}
	}
	if _, err := os.Stat(filepath.Join(pool, "flat-2.nspawn")); err != nil {
		t.Error(err)
	}
	mkdirs(t, pool, "taken")
	flat, err := s.Get(ctx, "flat")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.cloneAtOnce(flat, "taken", false); !errors.Is(err, ErrExists) {
		t.Errorf("clone over a directory = %v, want ErrExists", err)
	}
	leftovers(t, pool)
}
