package image

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"machined/internal/overlay"
	"machined/internal/pathlock"

	"golang.org/x/sys/unix"
)

// layeredStore is a store on ext4 with an image a; what is mounted in its pool goes
// away with the test.
func layeredStore(t *testing.T, mkfs ...string) (*Store, string) {
	t.Helper()
	pool := filepath.Join(onLoop(t, "ext4", append([]string{"-q"}, mkfs...)...), "pool")
	base := t.TempDir()
	mkdirs(t, base, "nspawn")
	write(t, filepath.Join(pool, "a/etc/hostname"), "a\n")
	write(t, filepath.Join(pool, "a/etc/state"), "one")
	write(t, filepath.Join(pool, "a/usr/lib/os-release"), "ID=x\n")
	write(t, filepath.Join(pool, "a/gone"), "x")
	if err := os.Chmod(filepath.Join(pool, "a"), 0o751); err != nil {
		t.Fatal(err)
	}
	s := NewStore(Config{SearchPath: []string{pool}, PoolDir: pool, NspawnDirs: []string{filepath.Join(base, "nspawn")},
		LockDir: filepath.Join(base, "locks"), NoHost: true})
	t.Cleanup(func() { unmountAll(t, pool) })
	return s, pool
}

func unmountAll(t *testing.T, pool string) {
	t.Helper()
	entries, _ := os.ReadDir(pool)
	for _, e := range entries {
		if err := overlay.Pool(pool).Unmount(e.Name()); err != nil {
			t.Errorf("unmount: %v", err)
		}
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		return err.(*os.PathError).Err.Error()
	}
	return string(data)
}

func wantContent(t *testing.T, pool string, want map[string]string) {
	t.Helper()
	for path, text := range want {
		if got := content(t, filepath.Join(pool, path)); got != text {
			t.Errorf("%s = %q, want %q", path, got, text)
		}
	}
}

func count(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return len(entries)
}

func TestLayersAreIndependent(t *testing.T) {
	s, pool := layeredStore(t)
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.CloneWith(ctx, "a", "b", CloneOptions{Overlay: true, NewIdentity: true}))
	if !overlay.Pool(pool).Has("b") || !overlay.Pool(pool).Has("a") {
		t.Fatal("the clone is a copy")
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(pool, "b"), &st); err != nil || st.Mode&0o7777 != 0o751 {
		t.Errorf("root of the clone: mode %o, %v", st.Mode, err)
	}
	write(t, filepath.Join(pool, "a/etc/state"), "a's")
	write(t, filepath.Join(pool, "b/etc/state"), "b's")
	must(os.Remove(filepath.Join(pool, "b/gone")))
	wantContent(t, pool, map[string]string{"a/etc/hostname": "a\n", "b/etc/hostname": "b\n", "a/etc/state": "a's", "b/etc/state": "b's",
		"a/gone": "x", "b/gone": "no such file or directory"})

	// A clone of each of them, changed as they are.
	must(s.CloneWith(ctx, "b", "c", CloneOptions{Overlay: true}))
	must(s.CloneWith(ctx, "c", "d", CloneOptions{Overlay: true, ReadOnly: true}))
	write(t, filepath.Join(pool, "b/etc/state"), "b's again")
	wantContent(t, pool, map[string]string{"c/etc/state": "b's", "c/gone": "no such file or directory", "d/etc/hostname": "b\n"})
	if img, err := s.Get(ctx, "d"); err != nil || !img.ReadOnly || img.Type != TypeDirectory {
		t.Errorf("read-only clone = %+v, %v", img, err)
	}
	if err := os.WriteFile(filepath.Join(pool, "d/new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only clone = %v", err)
	}

	// The daemon starts anew, with nothing mounted.
	unmountAll(t, pool)
	must(s.CleanTemporary())
	wantContent(t, pool, map[string]string{"a/etc/state": "a's", "b/etc/state": "b's again", "c/etc/state": "b's", "b/gone": "no such file or directory"})
	if img, _ := s.Get(ctx, "d"); !img.ReadOnly {
		t.Error("mounted anew, it is writable")
	}

	must(s.SetReadOnly(ctx, "d", false))
	must(s.Rename(ctx, "d", "e"))
	write(t, filepath.Join(pool, "e/new"), "new")
	must(s.Remove(ctx, "a"))
	must(s.Remove(ctx, "b"))
	wantContent(t, pool, map[string]string{"e/new": "new", "e/etc/state": "b's", "c/etc/state": "b's"})

	// A snapshot, back to it, and back to a plain directory.
	if _, err := s.Snapshot(ctx, "e", "x"); err != nil {
		t.Fatal(err)
	}
	must(os.Remove(filepath.Join(pool, "e/new")))
	if _, err := s.Rollback(ctx, "e", "x"); err != nil {
		t.Fatal(err)
	}
	wantContent(t, pool, map[string]string{"e/new": "new"})
	if overlay.Pool(pool).Has("e") {
		t.Error("rolled back, it still has layers")
	}
	must(s.Flatten(ctx, "c"))
	must(s.Flatten(ctx, "c"))
	wantContent(t, pool, map[string]string{"c/etc/state": "b's", "c/gone": "no such file or directory"})
	if err := overlay.Pool(pool).Unmount("c"); err != nil || content(t, filepath.Join(pool, "c/etc/state")) != "b's" {
		t.Errorf("flattened image is no plain directory: %v", err)
	}
	for _, dir := range []string{"overlays", "bases"} {
		if n := count(t, filepath.Join(pool, overlay.PrivateDir, dir)); n != 0 {
			t.Errorf("%d entries left in %s", n, dir)
		}
	}
	leftovers(t, pool)
}

func TestLayersOfABusyImage(t *testing.T) {
	s, pool := layeredStore(t)
	ctx := context.Background()
	lock, err := pathlock.Locks{Dir: s.cfg.LockDir}.Image(filepath.Join(pool, "a"), true)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CloneWith(ctx, "a", "copy", CloneOptions{Overlay: true}); err != nil {
		t.Fatal(err)
	}
	lock.Close()
	if overlay.Pool(pool).Has("copy") || overlay.Pool(pool).Has("a") {
		t.Error("an image in use was frozen")
	}
	wantContent(t, pool, map[string]string{"copy/etc/state": "one"})
	if err := s.CloneWith(ctx, "a", "b", CloneOptions{Overlay: true}); err != nil {
		t.Fatal(err)
	}
	open, err := os.Open(filepath.Join(pool, "b/etc/state"))
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"rename": s.Rename(ctx, "b", "c"), "remove": s.Remove(ctx, "b"), "flatten": s.Flatten(ctx, "b")} {
		if !errors.Is(err, ErrBusy) {
			t.Errorf("%s of an image with an open file = %v, want ErrBusy", what, err)
		}
	}
	_ = open.Close()
	wantContent(t, pool, map[string]string{"b/etc/state": "one"})
	leftovers(t, pool)
}

// TestLayersInterrupted brings about what a crash between two steps leaves.
func TestLayersInterrupted(t *testing.T) {
	s, pool := layeredStore(t)
	ctx := context.Background()
	private := filepath.Join(pool, overlay.PrivateDir)
	check := func(what string, want map[string]string) {
		t.Helper()
		if err := s.CleanTemporary(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		wantContent(t, pool, want)
	}
	script := func(text string) {
		t.Helper()
		cmd := exec.Command("sh", "-ec", text)
		cmd.Dir = pool
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", text, err, out)
		}
	}
	// About to be frozen, not yet exchanged.
	script(`mkdir -p machined.v/overlays/a/upper machined.v/overlays/a/work machined.v/bases/0123456789abcdef
		echo 0123456789abcdef >machined.v/overlays/a/layers`)
	check("before the exchange", map[string]string{"a/etc/state": "one"})
	if overlay.Pool(pool).Has("a") {
		t.Error("a plain directory is taken for layers")
	}
	if err := s.CloneWith(ctx, "a", "b", CloneOptions{Overlay: true}); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(pool, "b/etc/state"), "two")
	unmountAll(t, pool)
	script(`rmdir b; mkdir machined.v/overlays/.#machined-x`)
	check("without its directory", map[string]string{"b/etc/state": "two", "a/etc/state": "one"})
	unmountAll(t, pool)
	script(`sed -i '1i fedcba9876543210' machined.v/overlays/b/layers`)
	check("before the upper layer is moved", map[string]string{"b/etc/state": "two"})
	unmountAll(t, pool)
	script(`sed -i '1c 1111111111111111' machined.v/overlays/b/layers; mv machined.v/overlays/b/upper machined.v/bases/1111111111111111`)
	check("after it", map[string]string{"b/etc/state": "two"})
	unmountAll(t, pool)
	script(`touch machined.v/overlays/b/replaced`)
	check("before it is replaced", map[string]string{"b/etc/state": "two"})
	unmountAll(t, pool)
	script(`touch machined.v/overlays/b/replaced; mkdir -p b/etc; echo three >b/etc/state`)
	check("after it", map[string]string{"b/etc/state": "three\n", "a/etc/state": "one"})
	if n := count(t, filepath.Join(private, "bases")); n != 1 {
		t.Errorf("%d bases are left, want that of a", n)
	}
	unmountAll(t, pool)
	script(`echo ../../../etc >machined.v/overlays/a/layers`)
	if err := s.CleanTemporary(); err == nil {
		t.Error("a layer outside of the pool was mounted")
	}
}

// TestLayersOnFullDisk renames an image while the file system has room for no file: it
// stays, whole, under its old name.
func TestLayersOnFullDisk(t *testing.T) {
	s, pool := layeredStore(t, "-N", "256")
	ctx := context.Background()
	if err := s.CloneWith(ctx, "a", "b", CloneOptions{Overlay: true}); err != nil {
		t.Fatal(err)
	}
	fill := filepath.Join(filepath.Dir(pool), "fill")
	mkdirs(t, fill, ".")
	for i, err := 0, error(nil); err == nil; i++ {
		err = os.WriteFile(filepath.Join(fill, strconv.Itoa(i)), nil, 0o600)
	}
	if err := s.Rename(ctx, "b", "c"); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("rename = %v, want ENOSPC", err)
	}
	wantContent(t, pool, map[string]string{"a/etc/state": "one", "b/etc/state": "one"})
	if err := os.RemoveAll(fill); err != nil {
		t.Fatal(err)
	}
	if err := s.Rename(ctx, "b", "c"); err != nil {
		t.Fatal(err)
	}
	wantContent(t, pool, map[string]string{"a/etc/state": "one", "c/etc/state": "one"})
	leftovers(t, pool)
}
