package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func testStore(t *testing.T) (*Store, string) {
	t.Helper()
	base := t.TempDir()
	for _, dir := range []string{"etc", "pool", "usr", "nspawn", "host"} {
		if err := os.Mkdir(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return NewStore(Config{
		SearchPath: []string{filepath.Join(base, "etc"), filepath.Join(base, "missing"), filepath.Join(base, "pool"), filepath.Join(base, "usr")},
		PoolDir:    filepath.Join(base, "pool"),
		NspawnDirs: []string{filepath.Join(base, "nspawn")},
		LockDir:    filepath.Join(base, "locks"),
		HostRoot:   filepath.Join(base, "host"),
	}), base
}

func mkdirs(t *testing.T, base string, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestListFindsEveryForm(t *testing.T) {
	s, base := testStore(t)
	mkdirs(t, base, "pool/tree", "pool/.hidden", "pool/.#temp", "pool/.sysupdate.x", "pool/stack.mstack/rw",
		"pool/ver.v/ver_1.2", "pool/ver.v/ver_1.10", "pool/ver.v/ver_2+0-3", "pool/rv.raw.v", "usr/tree", "usr/vendor", "elsewhere/dir")
	write(t, filepath.Join(base, "pool/disk.raw"), "x")
	write(t, filepath.Join(base, "pool/rv.raw.v/rv_3.raw"), "x")
	write(t, filepath.Join(base, "pool/file.nspawn"), "x")
	write(t, filepath.Join(base, "elsewhere/any.img"), "x")
	for link, target := range map[string]string{"etc/link": "../elsewhere/dir", "etc/lraw.raw": "../elsewhere/any.img", "etc/dangling": "nowhere", "etc/loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(base, link)); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, img := range list {
		rel, _ := filepath.Rel(base, img.Path)
		got[img.Name] = string(img.Type) + " " + rel
		one, err := s.Get(context.Background(), img.Name)
		if err != nil || one != img {
			t.Errorf("Get(%q) = %+v, %v; List has %+v", img.Name, one, err, img)
		}
	}
	want := map[string]string{
		".host": "directory host", ".hidden": "directory pool/.hidden", "tree": "directory pool/tree", "vendor": "directory usr/vendor",
		"disk": "raw pool/disk.raw", "link": "directory etc/link", "lraw": "raw etc/lraw.raw", "stack": "mstack pool/stack.mstack",
		"ver": "directory pool/ver.v/ver_1.10", "rv": "raw pool/rv.raw.v/rv_3.raw",
	}
	for name, w := range want {
		if got[name] != w && !strings.HasPrefix(got[name], "subvolume") {
			t.Errorf("image %q = %q, want %q", name, got[name], w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("images = %v, want %v", got, want)
	}
}

func TestGetRefusesNames(t *testing.T) {
	s, base := testStore(t)
	mkdirs(t, base, "pool/.#x", "pool/ok")
	for _, test := range []struct {
		name string
		want error
	}{
		{"", ErrInvalidName},
		{"..", ErrInvalidName},
		{".", ErrInvalidName},
		{"../pool", ErrInvalidName},
		{"a/b", ErrInvalidName},
		{".#x", ErrInvalidName},
		{"a\nb", ErrInvalidName},
		{"\xff", ErrInvalidName},
		{strings.Repeat("x", 256), ErrInvalidName},
		{strings.Repeat("x", 255), ErrNoSuchImage},
		{"absent", ErrNoSuchImage},
		{"ok", nil},
	} {
		if _, err := s.Get(context.Background(), test.name); !errors.Is(err, test.want) {
			t.Errorf("Get(%q) = %v, want %v", test.name, err, test.want)
		}
	}
}
