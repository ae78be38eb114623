package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"machined/image"

	"golang.org/x/sys/unix"
)

// importBytes imports data as image "b" into root.
func importBytes(t *testing.T, root string, data []byte) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "in")
	must(t, os.WriteFile(path, data, 0o600))
	file, err := os.Open(path)
	must(t, err)
	defer func() { _ = file.Close() }()
	req := request(t, ImportTar, root, "b")
	req.File = file
	return Run(context.Background(), req)
}

// TestBrokenStreams cuts and flips streams of each compression at many places:
// the image is whole, or there is an error and nothing.
func TestBrokenStreams(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	makeTree(t, src)
	noise := make([]byte, 300<<10)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	must(t, os.WriteFile(filepath.Join(src, "noise"), noise, 0o644))
	want := describe(t, src)
	plain, err := exec.Command("tar", "-C", src, "--xattrs", "--xattrs-include=*", "--acls", "--sparse", "--format=pax", "-cf", "-", ".").Output()
	must(t, err)
	for _, format := range []Format{Uncompressed, Gzip, XZ, Bzip2, Zstd} {
		t.Run(string(format), func(t *testing.T) {
			t.Parallel()
			var buf bytes.Buffer
			w, err := NewWriter(&buf, format)
			if errors.Is(err, ErrNotSupported) {
				t.Skip(err)
			}
			must(t, err)
			_, err = w.Write(plain)
			must(t, err)
			must(t, w.Close())
			whole := buf.Bytes()
			check := func(what string, data []byte, mustFail bool) {
				root := t.TempDir()
				err := importBytes(t, root, data)
				clean(t, root)
				_, statErr := os.Lstat(filepath.Join(root, "b"))
				switch {
				case err != nil && statErr == nil:
					t.Errorf("%s: image is there after %v", what, err)
				case err == nil && mustFail:
					t.Errorf("%s: imported", what)
				case err == nil && describe(t, filepath.Join(root, "b")) != want:
					t.Errorf("%s: imported something else", what)
				}
			}
			check("whole", whole, false)
			for range 12 {
				cut := rand.IntN(len(whole) - 1)
				if format == Uncompressed {
					cut = min(cut, len(whole)-11<<10) // the padding behind the end mark may be missing
				}
				check(fmt.Sprintf("cut at %d of %d", cut, len(whole)), whole[:max(cut, 0)], true)
				if format == Uncompressed {
					continue // a plain archive has no checksum of contents
				}
				flipped := bytes.Clone(whole)
				at, bit := rand.IntN(len(flipped)), rand.IntN(8)
				flipped[at] ^= 1 << bit
				check(fmt.Sprintf("bit %d of byte %d of %d", bit, at, len(whole)), flipped, false)
			}
		})
	}
}

// TestFullDisk imports onto a file system that is too small.
func TestFullDisk(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	src := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(src, "usr"), 0o755))
	for i := range 64 { // 4 MiB in small files, written from many goroutines
		must(t, os.WriteFile(filepath.Join(src, "usr", fmt.Sprint(i)), bytes.Repeat([]byte{1}, 64<<10), 0o644))
	}
	for name, extra := range map[string][]string{"small files": nil, "bomb": {"--transform=s,^,x/,"}} {
		t.Run(name, func(t *testing.T) {
			if name == "bomb" { // 64 MiB of a single byte in a few kilobytes
				must(t, os.WriteFile(filepath.Join(src, "usr/big"), bytes.Repeat([]byte{1}, 64<<20), 0o644))
			}
			data, err := exec.Command("tar", append([]string{"-C", src, "-czf", "-", "usr"}, extra...)...).Output()
			must(t, err)
			err = importBytes(t, root, data)
			if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "usr") {
				t.Errorf("got %v, want ENOSPC that names the file", err)
			}
			if entries, _ := os.ReadDir(root); len(entries) != 0 {
				t.Errorf("left: %v", entries)
			}
		})
	}
}

// crashHelper makes the test binary do one operation for TestKilled.
const crashHelper = "TRANSFER_TEST_CRASH"

func TestMain(m *testing.M) {
	if op := os.Getenv(crashHelper); op != "" {
		if err := crashOperation(op, os.Getenv("ROOT")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func crashOperation(op, root string) error {
	store := image.NewStore(image.Config{PoolDir: root, SearchPath: []string{root}, LockDir: root + ".locks", NspawnDirs: []string{root + ".nspawn"}, NoHost: true})
	switch op {
	case "clone":
		return store.Clone(context.Background(), "old", "new", false)
	case "rename":
		return store.Rename(context.Background(), "old", "new")
	case "remove":
		return store.Remove(context.Background(), "old")
	}
	file, err := os.Open(root + ".tar")
	if err != nil {
		return err
	}
	return Run(context.Background(), Request{
		Kind: ImportTar, Local: "new", ImageRoot: root, SearchPath: []string{root}, LockDir: root + ".locks", Verify: VerifyNo, File: file,
	})
}

// TestKilled kills operations at random moments. Each image is then whole under
// its old name, whole under its new one, or absent, and the next start cleans up.
func TestKilled(t *testing.T) {
	needRoot(t)
	src := filepath.Join(t.TempDir(), "src")
	makeTree(t, src)
	for i := range 300 {
		must(t, os.WriteFile(filepath.Join(src, "etc", fmt.Sprint(i)), bytes.Repeat([]byte("conf"), 4000), 0o644))
	}
	want := describe(t, src)
	archive := filepath.Join(t.TempDir(), "a.tar")
	if out, err := exec.Command("tar", "-C", src, "--xattrs", "--xattrs-include=*", "--acls", "--sparse", "--format=pax", "-cf", archive, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, op := range []string{"import", "clone", "rename", "remove"} {
		t.Run(op, func(t *testing.T) {
			span := 60 * time.Millisecond
			if op == "rename" || op == "remove" {
				span = 15 * time.Millisecond
			}
			if op == "import" {
				span *= 3
			}
			interrupted := 0
			for range 20 {
				root := filepath.Join(t.TempDir(), "pool")
				must(t, os.MkdirAll(root, 0o755))
				must(t, os.Link(archive, root+".tar"))
				if op != "import" {
					if out, err := exec.Command("cp", "-a", src, filepath.Join(root, "old")).CombinedOutput(); err != nil {
						t.Fatalf("%v: %s", err, out)
					}
				}
				cmd := exec.Command("/proc/self/exe")
				cmd.Env = append(os.Environ(), crashHelper+"="+op, "ROOT="+root)
				must(t, cmd.Start())
				killer := time.AfterFunc(time.Duration(rand.Int64N(int64(span))), func() { _ = cmd.Process.Kill() })
				if err := cmd.Wait(); err != nil {
					interrupted++
				}
				killer.Stop()
				must(t, image.CleanTemporary(root))
				entries, err := os.ReadDir(root)
				must(t, err)
				there := map[string]bool{}
				for _, e := range entries {
					there[e.Name()] = true
					if e.Name() != "old" && e.Name() != "new" {
						t.Errorf("left: %q", e.Name())
					} else if got := describe(t, filepath.Join(root, e.Name())); got != want {
						t.Errorf("%q is not whole", e.Name())
					}
				}
				switch {
				case op == "clone" && !there["old"]:
					t.Error("the origin of the clone is gone")
				case op == "rename" && len(entries) != 1:
					t.Errorf("after a rename: %v, want one image", entries)
				}
			}
			t.Logf("%d of 20 were interrupted", interrupted)
		})
	}
}
