package nsexec

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"machined/internal/envfile"
	"machined/internal/sys"
)

func TestMain(m *testing.M) {
	Main() // the test binary is its own copy helper
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

func TestParseOSRelease(t *testing.T) {
	got, err := ParseOSRelease([]byte("# c\nID=debian\nNAME=\"De \\\"b\\\" $\"\nV='a b' # x\nBAD LINE\n1X=y\nU=\"open\nE=\n"))
	if err != nil {
		t.Fatal(err)
	}
	if want := (envfile.Pairs{{Key: "ID", Value: "debian"}, {Key: "NAME", Value: `De "b" $`}, {Key: "V", Value: "a b# x"}}); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := ParseOSRelease([]byte("A=\xff\n")); err == nil {
		t.Error("invalid UTF-8: want an error")
	}
}

func TestReadOSReleaseRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func(path string) error
		want error
	}{
		{"link out", func(p string) error { return os.Symlink("/etc/shadow", p) }, unix.ENOENT},
		{"link up", func(p string) error { return os.Symlink("../../../../../../etc/shadow", p) }, unix.ENOENT},
		{"huge", func(p string) error {
			if err := os.WriteFile(p, nil, 0o644); err != nil {
				return err
			}
			return os.Truncate(p, 1<<30)
		}, unix.EFBIG},
		{"fifo", func(p string) error { return unix.Mkfifo(p, 0o644) }, unix.EBADMSG},
		{"directory", func(p string) error { return os.Mkdir(p, 0o755) }, unix.EBADMSG},
		{"missing", func(string) error { return nil }, unix.ENOENT},
		{"secret", func(p string) error { return os.WriteFile(p, []byte("A=b\n"), 0o640) }, unix.EACCES},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := tc.make(filepath.Join(dir, "etc/os-release")); err != nil {
				t.Fatal(err)
			}
			root, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			if got, err := readOSRelease(int(root.Fd()), true); !errors.Is(err, tc.want) {
				t.Errorf("got %v, %v; want %v", got, err, tc.want)
			}
		})
	}
}

func TestIDMap(t *testing.T) {
	m, err := ParseIDMap(strings.NewReader("         0     100000      65536\n 65536 0 1\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := m.Outer(5); !ok || got != 100005 {
		t.Errorf("Outer(5) = %d, %v", got, ok)
	}
	if got, ok := m.Inner(100005); !ok || got != 5 {
		t.Errorf("Inner(100005) = %d, %v", got, ok)
	}
	if _, ok := m.Inner(0); ok {
		t.Error("a range of our own root is a private one")
	}
	for _, bad := range []string{"1 2\n", "a b c\n", "0 0 0\n", "4294967295 0 2\n", "-1 0 1\n", "0 0 4294967296\n"} {
		if got, err := ParseIDMap(strings.NewReader(bad)); err == nil {
			t.Errorf("ParseIDMap(%q) = %v, want an error", bad, got)
		}
	}
}

func FuzzParseOSRelease(f *testing.F) {
	f.Add([]byte("ID=debian\nNAME=\"x\"\n"))
	f.Add([]byte("A='\\'\nB=\"\\"))
	f.Fuzz(func(t *testing.T, data []byte) {
		fields, err := ParseOSRelease(data)
		for _, f := range fields {
			if err != nil || !envfile.ValidKey(f.Key) || strings.ContainsRune(f.Value, 0) {
				t.Errorf("%q = %q, %v", f.Key, f.Value, err)
			}
		}
	})
}

func FuzzParseIDMap(f *testing.F) {
	f.Add("0 100000 65536\n")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseIDMap(strings.NewReader(s))
		if err != nil {
			return
		}
		for _, r := range m {
			if out, ok := (IDMap{r}).Outer(r.Inside); !ok || out != r.Outside {
				t.Errorf("%v: first id maps to %d, %v", r, out, ok)
			}
		}
	})
}

// copySelf copies on the host, by way of this process as the "machine".
func copySelf(t *testing.T, from, to string, replace bool) error {
	t.Helper()
	p, err := sys.OpenProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	return Copy{Source: from, Destination: to, Replace: replace}.Run(t.Context(), p)
}

func TestCopyKeepsWhatATreeIs(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(src, "sub"), 0o750))
	must(os.WriteFile(filepath.Join(src, "a"), []byte("text"), 0o640))
	must(os.Link(filepath.Join(src, "a"), filepath.Join(src, "sub/b")))
	must(os.Symlink("/etc/shadow", filepath.Join(src, "link")))
	must(unix.Mkfifo(filepath.Join(src, "fifo"), 0o600))
	must(os.WriteFile(filepath.Join(src, "sparse"), nil, 0o600))
	must(os.Truncate(filepath.Join(src, "sparse"), 64<<20))
	must(os.Chown(filepath.Join(src, "sparse"), 7, 8))
	must(copySelf(t, src, dst, false))

	var a, b, sparse, orig unix.Stat_t
	must(unix.Stat(filepath.Join(dst, "a"), &a))
	must(unix.Stat(filepath.Join(dst, "sub/b"), &b))
	must(unix.Stat(filepath.Join(dst, "sparse"), &sparse))
	must(unix.Stat(filepath.Join(src, "a"), &orig))
	if a.Ino != b.Ino {
		t.Error("hard link became two files")
	}
	if a.Mode != orig.Mode || a.Mtim != orig.Mtim {
		t.Errorf("mode and time = %o %v, want %o %v", a.Mode, a.Mtim, orig.Mode, orig.Mtim)
	}
	if sparse.Size != 64<<20 || sparse.Blocks > 1024 || sparse.Uid != 7 || sparse.Gid != 8 {
		t.Errorf("sparse file: size %d, blocks %d, owner %d:%d", sparse.Size, sparse.Blocks, sparse.Uid, sparse.Gid)
	}
	if to, err := os.Readlink(filepath.Join(dst, "link")); err != nil || to != "/etc/shadow" {
		t.Errorf("link leads to %q, %v", to, err)
	}
	if err := copySelf(t, src, dst, false); !errors.Is(err, unix.EEXIST) {
		t.Errorf("second copy: got %v, want EEXIST", err)
	}
	must(os.WriteFile(filepath.Join(src, "a"), []byte("new"), 0o640))
	must(copySelf(t, src, dst, true))
	if data, err := os.ReadFile(filepath.Join(dst, "a")); err != nil || string(data) != "new" {
		t.Errorf("replaced file = %q, %v", data, err)
	}
	if err := copySelf(t, filepath.Join(dir, "none"), dst, false); !errors.Is(err, unix.ENOENT) {
		t.Errorf("missing source: got %v, want ENOENT", err)
	}
	// A tree into itself ends.
	must(copySelf(t, src, filepath.Join(src, "inside"), false))
}

// TestCopyCalledOff ends a copy in the middle of a file: nothing of that file
// is left.
func TestCopyCalledOff(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	const size = 256 << 20
	if err := os.WriteFile(from, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := sys.OpenProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var first, of uint64
	job := Copy{Source: from, Destination: to, Progress: func(copied, total uint64) {
		if first == 0 {
			first, of = copied, total
		}
		cancel()
	}}
	if err := job.Run(ctx, p); !errors.Is(err, context.Canceled) {
		t.Errorf("copy that was called off: got %v", err)
	}
	if first == 0 || first >= size || of != size {
		t.Errorf("first progress: %d of %d bytes, want some of %d", first, of, size)
	}
	if _, err := os.Lstat(to); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a file is left: %v", err)
	}
}

// TestCopyDoesNotFollowPlantedLinks writes over a tree whose directories have
// been swapped for links to elsewhere.
func TestCopyDoesNotFollowPlantedLinks(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	src, dst, victim := filepath.Join(dir, "src"), filepath.Join(dir, "dst"), filepath.Join(dir, "victim")
	for _, d := range []string{filepath.Join(src, "sub"), dst, victim} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(src, "sub/file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dst, "sub")); err != nil {
		t.Fatal(err)
	}
	for _, replace := range []bool{false, true} {
		if err := copySelf(t, src, dst, replace); err == nil {
			t.Errorf("replace %v: copied through a link", replace)
		}
	}
	if entries, _ := os.ReadDir(victim); len(entries) > 0 {
		t.Errorf("%s was written to", entries[0].Name())
	}
}
