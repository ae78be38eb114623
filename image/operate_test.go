package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"machined/internal/envfile"
	"machined/internal/pathlock"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root: owners and immutable marks")
}

func leftovers(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".#") {
			t.Errorf("leftover %q", e.Name())
		}
	}
}

func TestLifeOfAnImage(t *testing.T) {
	needRoot(t)
	s, base := testStore(t)
	ctx := context.Background()
	write(t, filepath.Join(base, "pool/a/etc/os-release"), "ID=x\n")
	write(t, filepath.Join(base, "pool/a.nspawn"), "[Exec]\n")
	write(t, filepath.Join(base, "nspawn/a.nspawn"), "[Exec]\nBoot=yes\n")
	write(t, filepath.Join(base, "pool/d.raw"), "disk")

	if err := s.Clone(ctx, "a", "b", true); err != nil {
		t.Fatal(err)
	}
	b, err := s.Get(ctx, "b")
	if err != nil || !b.ReadOnly {
		t.Fatalf("clone = %+v, %v, want read-only", b, err)
	}
	for _, path := range []string{"pool/b/etc/os-release", "pool/b.nspawn", "nspawn/b.nspawn"} {
		if _, err := os.Stat(filepath.Join(base, path)); err != nil {
			t.Errorf("after clone: %v", err)
		}
	}
	if err := s.Clone(ctx, "a", "b", false); !errors.Is(err, ErrExists) {
		t.Errorf("clone over an image = %v, want ErrExists", err)
	}
	if err := s.Rename(ctx, "b", "d"); !errors.Is(err, ErrExists) {
		t.Errorf("rename over an image = %v, want ErrExists", err)
	}
	if err := s.Rename(ctx, "b", "c"); err != nil {
		t.Fatal(err)
	}
	if c, err := s.Get(ctx, "c"); err != nil || !c.ReadOnly {
		t.Errorf("renamed = %+v, %v, want read-only", c, err)
	}
	if _, err := os.Stat(filepath.Join(base, "nspawn/c.nspawn")); err != nil {
		t.Error(err)
	}
	if err := s.SetReadOnly(ctx, "c", false); err != nil {
		t.Fatal(err)
	}
	if c, _ := s.Get(ctx, "c"); c.ReadOnly {
		t.Error("still read-only")
	}
	if err := s.Clone(ctx, "d", "e", true); err != nil {
		t.Fatal(err)
	}
	if e, err := s.Get(ctx, "e"); err != nil || !e.ReadOnly || e.Type != TypeRaw {
		t.Errorf("raw clone = %+v, %v", e, err)
	}
	if err := s.SetReadOnly(ctx, "c", true); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"c", "e"} {
		if err := s.Remove(ctx, name); err != nil {
			t.Errorf("remove %q: %v", name, err)
		}
		if _, err := s.Get(ctx, name); !errors.Is(err, ErrNoSuchImage) {
			t.Errorf("removed %q = %v", name, err)
		}
	}
	for _, path := range []string{"pool/c.nspawn", "nspawn/c.nspawn"} {
		if _, err := os.Stat(filepath.Join(base, path)); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
	leftovers(t, filepath.Join(base, "pool"))
}

func TestBusyImage(t *testing.T) {
	needRoot(t)
	s, base := testStore(t)
	ctx := context.Background()
	mkdirs(t, base, "pool/a", "pool/.h")
	lock, err := pathlock.Locks{Dir: filepath.Join(base, "locks")}.Image(filepath.Join(base, "pool/a"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	for what, err := range map[string]error{
		"remove": s.Remove(ctx, "a"), "rename": s.Rename(ctx, "a", "b"), "read-only": s.SetReadOnly(ctx, "a", true),
	} {
		if !errors.Is(err, ErrBusy) {
			t.Errorf("%s of a busy image = %v, want ErrBusy", what, err)
		}
	}
	if _, err := s.Metadata(ctx, "a"); err != nil {
		t.Errorf("metadata of an image in use = %v", err)
	}
	got, err := s.Clean(ctx, CleanAll)
	if err != nil || len(got) != 1 || got[0].Name != ".h" {
		t.Errorf("clean = %v, %v, want .h alone", got, err)
	}
	for what, err := range map[string]error{
		"remove": s.Remove(ctx, HostName), "rename": s.Rename(ctx, HostName, "b"), "read-only": s.SetReadOnly(ctx, HostName, true), "limit": s.SetLimit(ctx, HostName, 1),
	} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("%s of .host = %v, want ErrReadOnly", what, err)
		}
	}
}

func TestCleanTemporary(t *testing.T) {
	s, base := testStore(t)
	mkdirs(t, base, "pool/"+TempName("dead")+"/x", "pool/.#other")
	held := filepath.Join(base, "pool", TempName("held"))
	if err := os.Mkdir(held, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(held)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := HoldTemp(f); err != nil {
		t.Fatal(err)
	}
	if err := s.CleanTemporary(); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(filepath.Join(base, "pool"))
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if want := []string{filepath.Base(held), ".#other"}; !reflect.DeepEqual(got, want) {
		t.Errorf("left = %v, want %v", got, want)
	}
}

func TestMetadataStaysInside(t *testing.T) {
	s, base := testStore(t)
	mkdirs(t, base, "pool/a/etc", "pool/a/usr/lib")
	if err := os.Symlink("/etc/shadow", filepath.Join(base, "pool/a/etc/os-release")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../../../../../etc/passwd", filepath.Join(base, "pool/a/etc/machine-info")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(base, "pool/a/etc/hostname"), "# c\nbox\n")
	write(t, filepath.Join(base, "pool/a/etc/machine-id"), "0123456789abcdef0123456789abcdef\n")
	write(t, filepath.Join(base, "pool/a/usr/lib/os-release"), "ID=deb\nNAME=\"A \\\"b\\\"\"\nbad line\n")
	m, err := s.Metadata(context.Background(), "a")
	if err != nil {
		t.Fatal(err)
	}
	want := Metadata{Hostname: "box", MachineID: [16]byte{1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}, OSRelease: envfile.Pairs{{Key: "ID", Value: "deb"}, {Key: "NAME", Value: `A "b"`}}}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("metadata = %+v, want %+v", m, want)
	}
}

func FuzzParseEnv(f *testing.F) {
	f.Add("ID=debian\nNAME=\"x\\\"\"\n# c\nA='b'")
	f.Fuzz(func(t *testing.T, data string) {
		for _, pair := range parseEnv(data) {
			if !envfile.ValidKey(pair.Key) || !utf8.ValidString(pair.Value) {
				t.Errorf("%q", pair)
			}
		}
		parseHostname(data)
		parseMachineID(data)
	})
}
