package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"machined/internal/pathlock"

	"golang.org/x/sys/unix"
)

// TestWordsOfErrors has each operation refused: the reason is one sentence that names the
// image once and no temporary file.
func TestWordsOfErrors(t *testing.T) {
	needRoot(t)
	s, base := testStore(t)
	ctx := context.Background()
	for _, name := range []string{"a", "b", ".hidden", "busy"} {
		write(t, filepath.Join(base, "pool", name, "etc/os-release"), "ID=x\n")
	}
	write(t, filepath.Join(base, "pool/v.v/v_1/etc/os-release"), "ID=x\n")
	lock, err := pathlock.Locks{Dir: s.cfg.LockDir}.Image(filepath.Join(base, "pool/busy"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := s.Snapshot(ctx, "a", "one"); err != nil {
		t.Fatal(err)
	}
	second := func(_ any, err error) error { return err }
	for _, c := range []struct {
		err  error
		is   error
		want string
	}{
		{s.Remove(ctx, "none"), ErrNoSuchImage, `there is no image "none"`},
		{s.Remove(ctx, "busy"), ErrBusy, `image "busy" is currently busy`},
		{s.Remove(ctx, ".host"), ErrReadOnly, `image ".host" is the host itself`},
		{s.Rename(ctx, "a", "b"), ErrExists, `image "b" exists already`},
		{s.Rename(ctx, "busy", "c"), ErrBusy, `image "busy" is currently busy`},
		{s.Rename(ctx, "a", "x/y"), ErrInvalidName, `invalid image name "x/y": it has a slash`},
		{s.Clone(ctx, "a", "b", false), ErrExists, `image "b" exists already`},
		{s.Clone(ctx, ".host", "c", false), ErrHostTree, `image ".host" is the host's own tree, of which no copy can be made`},
		{s.SetReadOnly(ctx, "busy", true), ErrBusy, `image "busy" is currently busy`},
		{s.SetReadOnly(ctx, ".hidden", true), ErrReadOnly, `image ".hidden" is hidden, and so always read-only`},
		{s.SetLimit(ctx, "a", 1<<20), ErrNotSupported, `image "a" is a directory, which can have no limit`},
		{s.Flatten(ctx, ".host"), ErrReadOnly, `image ".host" is the host itself`},
		{second(s.Snapshot(ctx, "a", "one")), ErrExists, `image "a" has a snapshot "one" already`},
		{second(s.Rollback(ctx, "a", "two")), ErrNoSuchSnapshot, `image "a" has no snapshot "two"`},
		{second(s.Rollback(ctx, "b", "")), ErrNoSuchSnapshot, `image "b" has no snapshot`},
		{second(s.Prune(ctx, "a", []string{"two"}, 0)), ErrNoSuchSnapshot, `image "a" has no snapshot "two"`},
	} {
		if !errors.Is(c.err, c.is) || c.err.Error() != c.want {
			t.Errorf("got %v, want %s", c.err, c.want)
		}
	}
	if err := s.Rename(ctx, "v", "w"); !errors.Is(err, ErrNotSupported) || strings.Count(err.Error(), `"v"`) != 1 {
		t.Errorf("rename of a version: %v", err)
	}
	// A full disk.
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	full := NewStore(Config{PoolDir: small, SearchPath: []string{small}, LockDir: small + "/locks", NoHost: true, NspawnDirs: []string{small + "/nspawn"}})
	write(t, filepath.Join(small, "a/usr/big"), strings.Repeat("x", 150<<10))
	write(t, filepath.Join(small, "d.raw"), strings.Repeat("x", 40<<10))
	if err := os.WriteFile(filepath.Join(small, "fill"), make([]byte, 40<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{full.Clone(ctx, "a", "b", false), `copy of image "a": copy usr/big: no space left on device`},
		{full.Clone(ctx, "d", "e", false), `copy of image "d": no space left on device`},
		{second(full.Snapshot(ctx, "d", "one")), `copy of image "d": no space left on device`},
	} {
		if !errors.Is(c.err, unix.ENOSPC) || c.err.Error() != c.want {
			t.Errorf("got %v, want %s", c.err, c.want)
		}
	}
	if _, err := os.Lstat(filepath.Join(small, "machined.v")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a snapshot that failed has left its directory: %v", err)
	}
}
