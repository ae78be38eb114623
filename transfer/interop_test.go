package transfer

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tarProgram finds GNU tar (tar) or libarchive's (bsdtar).
func tarProgram(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("REQUIRE_ALL") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return path
}

func command(t *testing.T, argv ...string) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
}

// below leaves the line of the root itself out: bsdtar does not restore its time.
func below(description string) string {
	_, rest, _ := strings.Cut(description, "\n")
	return rest
}

// addOddFiles adds to a tree what formats keep in different ways.
func addOddFiles(t *testing.T, base string) {
	t.Helper()
	long := filepath.Join(base, strings.Repeat("long-directory-name/", 8))
	must(t, os.MkdirAll(long, 0o755))
	must(t, os.WriteFile(filepath.Join(long, strings.Repeat("n", 200)), []byte("x"), 0o640))
	must(t, os.Symlink(strings.Repeat("t/", 120)+"end", filepath.Join(base, "long-link")))
	must(t, os.Link(filepath.Join(long, strings.Repeat("n", 200)), filepath.Join(base, "long-hard-link")))
	must(t, os.WriteFile(filepath.Join(base, "ünï\xff cöde\n"), []byte("y"), 0o600))
	for name, pieces := range map[string][]int64{"hole-at-both-ends": {1 << 20, 3 << 20}, "data-at-both-ends": {0, 8<<20 - 4096}, "only-a-hole": nil} {
		f, err := os.Create(filepath.Join(base, name))
		must(t, err)
		for _, off := range pieces {
			_, err := f.WriteAt([]byte(strings.Repeat(name, 400)[:4096]), off)
			must(t, err)
		}
		must(t, f.Truncate(8<<20))
		must(t, f.Close())
	}
	f, err := os.Create(filepath.Join(base, "many-holes"))
	must(t, err)
	for i := range int64(300) { // more than one block of a map
		_, err := f.WriteAt([]byte("data"), i*64<<10)
		must(t, err)
	}
	must(t, f.Close())
	must(t, unix.Setxattr(filepath.Join(base, "many-holes"), "user.x", []byte("a\x00=\nb"), 0))
}

// TestOursElsewhere unpacks our archives with other programs.
func TestOursElsewhere(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	makeTree(t, src)
	addOddFiles(t, src)
	want := describe(t, src)
	archive := filepath.Join(t.TempDir(), "a.tar")
	dir, err := os.Open(src)
	must(t, err)
	defer func() { _ = dir.Close() }()
	out, err := os.Create(archive)
	must(t, err)
	must(t, Tar(context.Background(), dir, out, func(int64) {}))
	must(t, out.Close())
	if st, err := os.Stat(archive); err != nil || st.Size() > 8<<20 {
		t.Errorf("archive of files with holes: %d bytes, %v", st.Size(), err)
	}
	for name, argv := range map[string][]string{
		"tar":    {"--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "-xpf"},
		"bsdtar": {"--numeric-owner", "--xattrs", "--acls", "-S", "-xpf"},
	} {
		t.Run(name, func(t *testing.T) {
			to := t.TempDir()
			command(t, append(append([]string{tarProgram(t, name)}, argv...), archive, "-C", to)...)
			if got, want := below(describe(t, to)), below(want); got != want {
				t.Errorf("tree:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// TestTheirsHere unpacks archives of other programs, in each format that they
// write, and compares with what the program itself makes of them.
func TestTheirsHere(t *testing.T) {
	needRoot(t)
	full := []string{"--xattrs", "--acls"}
	for _, test := range []struct {
		name    string
		program string
		plain   bool // names, owners and modes only
		args    []string
	}{
		{"gnu tar, v7", "tar", true, []string{"--format=v7"}},
		{"gnu tar, old gnu", "tar", false, []string{"--format=oldgnu", "-S"}},
		{"gnu tar, gnu", "tar", false, []string{"--format=gnu", "-S"}},
		{"gnu tar, ustar", "tar", true, []string{"--format=ustar"}},
		{"gnu tar, pax, sparse 0.0", "tar", false, append([]string{"--format=posix", "--xattrs-include=*", "-S", "--sparse-version=0.0"}, full...)},
		{"gnu tar, pax, sparse 0.1", "tar", false, append([]string{"--format=posix", "--xattrs-include=*", "-S", "--sparse-version=0.1"}, full...)},
		{"gnu tar, pax, sparse 1.0", "tar", false, append([]string{"--format=posix", "--xattrs-include=*", "-S", "--sparse-version=1.0"}, full...)},
		{"bsdtar, pax", "bsdtar", false, append([]string{"--format=pax"}, full...)},
		{"bsdtar, gnu", "bsdtar", false, []string{"--format=gnutar", "--no-xattrs", "--no-acls"}},
		{"bsdtar, ustar", "bsdtar", true, []string{"--format=ustar", "--no-xattrs", "--no-acls"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			program := tarProgram(t, test.program)
			src := filepath.Join(t.TempDir(), "src")
			if test.plain {
				must(t, os.MkdirAll(filepath.Join(src, "etc"), 0o755))
				must(t, os.WriteFile(filepath.Join(src, "etc/f"), []byte("x"), 0o4751))
				must(t, os.Chown(filepath.Join(src, "etc/f"), 12, 34))
				must(t, os.Chmod(filepath.Join(src, "etc/f"), 0o4751|os.ModeSetuid))
				must(t, os.Link(filepath.Join(src, "etc/f"), filepath.Join(src, "etc/g")))
				must(t, os.Symlink("f", filepath.Join(src, "etc/l")))
			} else {
				makeTree(t, src)
				addOddFiles(t, src)
			}
			archive := filepath.Join(t.TempDir(), "a.tar")
			command(t, append(append([]string{program}, test.args...), "--numeric-owner", "-cf", archive, "-C", src, ".")...)
			theirs, ours := t.TempDir(), t.TempDir()
			unpack := []string{program, "--numeric-owner", "-xpf", archive, "-C", theirs}
			if test.program == "tar" {
				unpack = append(unpack, "--xattrs", "--xattrs-include=*", "--acls", "-S")
			} else {
				unpack = append(unpack, "--xattrs", "--acls", "-S")
			}
			command(t, unpack...)
			in, err := os.Open(archive)
			must(t, err)
			defer func() { _ = in.Close() }()
			root, err := os.Open(ours)
			must(t, err)
			defer func() { _ = root.Close() }()
			must(t, Untar(context.Background(), in, root, nil))
			if got, want := below(describe(t, ours)), below(describe(t, theirs)); got != want {
				t.Errorf("tree:\n%s\n%s makes it:\n%s", got, test.program, want)
			}
		})
	}
}
