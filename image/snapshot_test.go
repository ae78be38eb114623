package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"machined/internal/btrfs"
	"machined/internal/pathlock"
)

func TestSnapshotsOfATree(t *testing.T) {
	needRoot(t)
	s, base := testStore(t)
	snapshots(t, s, base)
}

func TestSnapshotsOfASubvolume(t *testing.T) {
	base := onBtrfs(t)
	top, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = top.Close() }()
	for _, name := range []string{"pool", "nspawn"} {
		if err := btrfs.Create(top, name); err != nil {
			t.Fatal(err)
		}
	}
	pool, err := os.Open(filepath.Join(base, "pool"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pool.Close() }()
	if err := btrfs.Create(pool, "a"); err != nil {
		t.Fatal(err)
	}
	snapshots(t, NewStore(Config{
		SearchPath: []string{filepath.Join(base, "pool")}, PoolDir: filepath.Join(base, "pool"),
		NspawnDirs: []string{filepath.Join(base, "nspawn")}, LockDir: filepath.Join(t.TempDir(), "locks"), NoHost: true,
	}), base)
}

// snapshots takes, lists, rolls back to and removes snapshots of pool/a.
func snapshots(t *testing.T, s *Store, base string) {
	ctx := context.Background()
	state := filepath.Join(base, "pool/a/etc/state")
	read := func() string {
		data, _ := os.ReadFile(state)
		return string(data)
	}
	names := func(image string) []string {
		list, err := s.Snapshots(ctx, image)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, snap := range list {
			names = append(names, snap.Image+"/"+snap.Name)
			if snap.Created.IsZero() {
				t.Errorf("snapshot %s has no time", snap.Name)
			}
		}
		return names
	}
	for _, text := range []string{"one", "two", "three"} {
		write(t, state, text)
		if got, err := s.Snapshot(ctx, "a", "s-"+text); err != nil || got != "s-"+text {
			t.Fatalf("snapshot = %q, %v", got, err)
		}
	}
	write(t, state, "now")
	if got, want := names("a"), []string{"a/s-one", "a/s-two", "a/s-three"}; !reflect.DeepEqual(got, want) {
		t.Errorf("snapshots = %v, want %v", got, want)
	}
	if _, err := s.Snapshot(ctx, "a", "s-one"); !errors.Is(err, ErrExists) {
		t.Errorf("snapshot again = %v, want ErrExists", err)
	}
	for _, bad := range []string{"a/b", ".x", "..", ".#x", strings.Repeat("x", 250), "a\nb"} {
		if _, err := s.Snapshot(ctx, "a", bad); !errors.Is(err, ErrInvalidName) {
			t.Errorf("snapshot %q = %v, want ErrInvalidName", bad, err)
		}
	}
	if got, err := s.Rollback(ctx, "a", "s-one"); err != nil || got != "s-one" || read() != "one" {
		t.Errorf("roll back = %q, %v, state %q, want one", got, err, read())
	}
	write(t, state, "changed") // the snapshot must not change with it
	if got, err := s.Rollback(ctx, "a", ""); err != nil || got != "s-three" || read() != "three" {
		t.Errorf("roll back to the newest = %q, %v, state %q, want three", got, err, read())
	}
	if _, err := s.Rollback(ctx, "a", "s-one"); err != nil || read() != "one" {
		t.Errorf("roll back = %v, state %q, want one", err, read())
	}
	if _, err := s.Rollback(ctx, "a", "none"); !errors.Is(err, ErrNoSuchSnapshot) {
		t.Errorf("roll back to none = %v, want ErrNoSuchSnapshot", err)
	}
	if err := s.SetReadOnly(ctx, "a", true); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Rollback(ctx, "a", "s-two"); err != nil || read() != "two" {
		t.Errorf("roll back of a read-only image = %v, state %q, want two", err, read())
	}
	if img, _ := s.Get(ctx, "a"); !img.ReadOnly {
		t.Error("rolled back, it is not read-only any more")
	}
	if err := s.SetReadOnly(ctx, "a", false); err != nil {
		t.Fatal(err)
	}
	lock, err := pathlock.Locks{Dir: s.cfg.LockDir}.Image(filepath.Join(base, "pool/a"), true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Rollback(ctx, "a", ""); !errors.Is(err, ErrBusy) {
		t.Errorf("roll back of an image in use = %v, want ErrBusy", err)
	}
	_, err = s.Snapshot(ctx, "a", "live")
	if img, _ := s.Get(ctx, "a"); (img.Type == TypeSubvolume) != (err == nil) {
		t.Errorf("snapshot of a %s in use = %v", img.Type, err)
	}
	lock.Close()

	if err := s.Rename(ctx, "a", "b"); err != nil {
		t.Fatal(err)
	}
	if got := names("a"); got != nil {
		t.Errorf("snapshots under the old name: %v", got)
	}
	auto, err := s.Snapshot(ctx, "b", "")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Snapshot(ctx, "b", ""); err != nil || again == auto {
		t.Errorf("second snapshot by time = %q, %v", again, err)
	}
	removed, err := s.Prune(ctx, "b", nil, 2)
	if err != nil || len(names("b")) != 2 || removed[0] != "s-one" {
		t.Errorf("prune = %v, %v, left %v", removed, err, names(""))
	}
	if got, err := s.Prune(ctx, "b", []string{auto}, 0); err != nil || !reflect.DeepEqual(got, []string{auto}) {
		t.Errorf("prune one = %v, %v", got, err)
	}
	if list, _ := s.List(ctx); len(list) > 2 {
		t.Errorf("listed images: %v", list)
	}
	if err := s.Remove(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if got := names(""); got != nil {
		t.Errorf("snapshots of a removed image: %v", got)
	}
	if _, err := os.Stat(filepath.Join(base, "pool", SnapshotsDir)); err == nil {
		t.Error("empty directory of snapshots is left")
	}
	leftovers(t, filepath.Join(base, "pool"))
}

func TestSnapshotsOfADisk(t *testing.T) {
	needRoot(t)
	s, base := testStore(t)
	ctx := context.Background()
	disk := filepath.Join(base, "pool/d.raw")
	write(t, disk, "old")
	if _, err := s.Snapshot(ctx, "d", "x"); err != nil {
		t.Fatal(err)
	}
	write(t, disk, "new")
	if _, err := s.Rollback(ctx, "d", "x"); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(disk); string(data) != "old" {
		t.Errorf("disk = %q, want old", data)
	}
	if st, _ := os.Stat(disk); st.Mode().Perm() != 0o644 {
		t.Errorf("mode = %o, want 644", st.Mode().Perm())
	}
	leftovers(t, filepath.Join(base, "pool"))
}

func TestCloneGetsIdentity(t *testing.T) {
	needRoot(t)
	s, base := testStore(t)
	ctx := context.Background()
	id := "0123456789abcdef0123456789abcdef"
	write(t, filepath.Join(base, "pool/a/etc/machine-id"), id+"\n")
	write(t, filepath.Join(base, "pool/a/etc/hostname"), "a\n")
	write(t, filepath.Join(base, "pool/a/var/lib/dbus/machine-id"), id+"\n")
	write(t, filepath.Join(base, "pool/fresh/etc/machine-id"), "uninitialized\n")
	write(t, filepath.Join(base, "outside"), id+"\n")
	mkdirs(t, base, "pool/link/etc")
	for _, name := range []string{"machine-id", "hostname"} {
		if err := os.Symlink(filepath.Join(base, "outside"), filepath.Join(base, "pool/link/etc", name)); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{"a": "web-1", "fresh": "f2", "link": "l2"} {
		if err := s.CloneWith(ctx, from, to, CloneOptions{NewIdentity: true}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Clone(ctx, "a", "same", false); err != nil {
		t.Fatal(err)
	}
	m, err := s.Metadata(ctx, "web-1")
	if err != nil || m.Hostname != "web-1" || m.MachineID == parseMachineID(id) || m.MachineID == [16]byte{} {
		t.Errorf("identity of the clone = %+v, %v", m, err)
	}
	a, _ := os.ReadFile(filepath.Join(base, "pool/web-1/etc/machine-id"))
	b, _ := os.ReadFile(filepath.Join(base, "pool/web-1/var/lib/dbus/machine-id"))
	if string(a) != string(b) || len(a) != 33 {
		t.Errorf("machine ids = %q, %q", a, b)
	}
	if m, _ := s.Metadata(ctx, "same"); m.Hostname != "a" || m.MachineID != parseMachineID(id) {
		t.Errorf("plain clone = %+v, want the original's identity", m)
	}
	if data, _ := os.ReadFile(filepath.Join(base, "pool/f2/etc/machine-id")); string(data) != "uninitialized\n" {
		t.Errorf("machine id of a fresh system = %q", data)
	}
	if data, _ := os.ReadFile(filepath.Join(base, "outside")); string(data) != id+"\n" {
		t.Errorf("a file outside of the clone is now %q", data)
	}
	if m, _ := s.Metadata(ctx, "a"); m.Hostname != "a" || m.MachineID != parseMachineID(id) {
		t.Errorf("the original is now %+v", m)
	}
}
