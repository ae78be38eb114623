package treecopy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func sample(t testing.TB, base string) {
	must(t, os.MkdirAll(filepath.Join(base, "a/b/c"), 0o755))
	must(t, os.WriteFile(filepath.Join(base, "a/file"), []byte("hello"), 0o640))
	must(t, os.Link(filepath.Join(base, "a/file"), filepath.Join(base, "a/b/hard")))
	must(t, os.Symlink("../../outside", filepath.Join(base, "a/sym")))
	must(t, unix.Link(filepath.Join(base, "a/sym"), filepath.Join(base, "symhard")))
	must(t, unix.Mkfifo(filepath.Join(base, "a/fifo"), 0o600))
	sparse, err := os.Create(filepath.Join(base, "sparse"))
	must(t, err)
	must(t, sparse.Truncate(8<<20))
	_, err = sparse.WriteAt([]byte("data"), 4<<20)
	must(t, err)
	must(t, sparse.Close())
	must(t, os.Chmod(filepath.Join(base, "a/b"), 0o2711))
	_ = unix.Setxattr(filepath.Join(base, "a/file"), "user.note", []byte("x"), 0)
	if os.Geteuid() == 0 {
		must(t, os.Lchown(filepath.Join(base, "a/sym"), 5, 6))
		must(t, os.Chown(filepath.Join(base, "a/b/c"), 7, 8))
		_ = unix.Mknod(filepath.Join(base, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
	}
	old := unix.NsecToTimespec(1_000_000_000_123_456_789)
	for _, name := range []string{"a/file", "a/sym", "a/b", "a", "."} {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(base, name), []unix.Timespec{old, old}, unix.AT_SYMLINK_NOFOLLOW))
	}
}

func TestCopyKeepsEverything(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	sample(t, src)
	must(t, Copy(context.Background(), open(t, src), open(t, dst), Options{}))
	checkSame(t, src, dst)
}

func checkSame(t testing.TB, src, dst string) {
	t.Helper()
	inodes := map[uint64]uint64{}
	must(t, filepath.WalkDir(src, func(path string, _ os.DirEntry, err error) error {
		must(t, err)
		rel, _ := filepath.Rel(src, path)
		var a, b unix.Stat_t
		must(t, unix.Lstat(path, &a))
		if err := unix.Lstat(filepath.Join(dst, rel), &b); err != nil {
			t.Errorf("%s: %v", rel, err)
			return nil
		}
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev || a.Mtim != b.Mtim {
			t.Errorf("%s: got mode %o owner %d:%d mtime %v, want %o %d:%d %v", rel, b.Mode, b.Uid, b.Gid, b.Mtim, a.Mode, a.Uid, a.Gid, a.Mtim)
		}
		if a.Mode&unix.S_IFMT != unix.S_IFDIR && (a.Size != b.Size || a.Nlink != b.Nlink) {
			t.Errorf("%s: got size %d links %d, want %d %d", rel, b.Size, b.Nlink, a.Size, a.Nlink)
		}
		if other, ok := inodes[a.Ino]; ok && other != b.Ino {
			t.Errorf("%s: hard link lost", rel)
		}
		inodes[a.Ino] = b.Ino
		if a.Mode&unix.S_IFMT == unix.S_IFREG {
			x, _ := os.ReadFile(path)
			y, _ := os.ReadFile(filepath.Join(dst, rel))
			if string(x) != string(y) {
				t.Errorf("%s: content differs", rel)
			}
			if a.Size > 1<<20 && b.Blocks > a.Blocks+64 {
				t.Errorf("%s: got %d blocks, want about %d", rel, b.Blocks, a.Blocks)
			}
		}
		return nil
	}))
}

func TestCopyExisting(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	sample(t, src)
	must(t, os.MkdirAll(filepath.Join(dst, "a"), 0o700))
	must(t, os.WriteFile(filepath.Join(dst, "a/file"), []byte("old"), 0o600))
	ctx := context.Background()
	if err := Copy(ctx, open(t, src), open(t, dst), Options{}); !errors.Is(err, unix.EEXIST) {
		t.Errorf("plain copy over a tree = %v, want EEXIST", err)
	}
	if err := Copy(ctx, open(t, src), open(t, dst), Options{Merge: true}); !errors.Is(err, unix.EEXIST) {
		t.Errorf("merge over a file = %v, want EEXIST", err)
	}
	if err := Copy(ctx, open(t, src), open(t, dst), Options{Merge: true, Replace: true}); err != nil {
		t.Errorf("replace = %v", err)
	}
	got, _ := os.ReadFile(filepath.Join(dst, "a/file"))
	if string(got) != "hello" {
		t.Errorf("replaced file = %q, want hello", got)
	}
}

// What exists is replaced when its successor is whole, and stays where there is none.
func TestCopyReplacesWhole(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(src, "a"), make([]byte, 1<<20), 0o644))
	must(t, os.Link(filepath.Join(src, "a"), filepath.Join(src, "b")))
	must(t, os.WriteFile(filepath.Join(dst, "a"), []byte("old"), 0o600))
	must(t, os.Link(filepath.Join(dst, "a"), filepath.Join(dst, "b")))
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	fresh := t.TempDir()
	must(t, os.WriteFile(filepath.Join(fresh, "a"), []byte("old"), 0o600))
	if err := CopyEntry(canceled, open(t, src), "a", open(t, fresh), "a", Options{Replace: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("copy that was called off = %v", err)
	}
	left, _ := os.ReadDir(fresh)
	if got, _ := os.ReadFile(filepath.Join(fresh, "a")); len(left) != 1 || string(got) != "old" {
		t.Errorf("after a copy that was called off: %v, file %q", left, got)
	}
	for range 2 { // onto an older tree, and onto itself
		must(t, Copy(context.Background(), open(t, src), open(t, dst), Options{Merge: true, Replace: true}))
		var a, b unix.Stat_t
		must(t, unix.Stat(filepath.Join(dst, "a"), &a))
		must(t, unix.Stat(filepath.Join(dst, "b"), &b))
		if left, _ := os.ReadDir(dst); a.Size != 1<<20 || a.Ino != b.Ino || len(left) != 2 {
			t.Errorf("got %d bytes, inodes %d and %d, entries %v", a.Size, a.Ino, b.Ino, left)
		}
	}
}

func TestCopyIntoItselfAndTooDeep(t *testing.T) {
	src := t.TempDir()
	sample(t, src)
	must(t, os.Mkdir(filepath.Join(src, "inside"), 0o755))
	must(t, Copy(context.Background(), open(t, src), open(t, filepath.Join(src, "inside")), Options{}))
	if _, err := os.Lstat(filepath.Join(src, "inside/inside")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the copy is in the copy: %v", err)
	}
	deep := t.TempDir()
	fd, err := unix.Open(deep, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	for range maxDepth + 2 {
		must(t, unix.Mkdirat(fd, "d", 0o755))
		next, err := unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		_ = unix.Close(fd)
		fd = next
	}
	_ = unix.Close(fd)
	if err := Copy(context.Background(), open(t, deep), open(t, t.TempDir()), Options{}); !errors.Is(err, unix.ELOOP) {
		t.Errorf("copy of a tree without end = %v, want ELOOP", err)
	}
}

func TestCopyNeverFollowsDestinationLinks(t *testing.T) {
	src, dst, out := t.TempDir(), t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(src, "d"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "d/f"), []byte("x"), 0o644))
	must(t, os.Symlink(out, filepath.Join(dst, "d")))
	if err := Copy(context.Background(), open(t, src), open(t, dst), Options{Merge: true, Replace: true}); err == nil {
		t.Error("copy through a symlink succeeded")
	}
	if left, _ := os.ReadDir(out); len(left) != 0 {
		t.Errorf("wrote outside: %v", left)
	}
}

func TestCopyOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root to give files away")
	}
	src, dst := t.TempDir(), t.TempDir()
	sample(t, src)
	must(t, Copy(context.Background(), open(t, src), open(t, dst), Options{Owner: func(_, _ uint32) (uint32, uint32) { return 99, 98 }}))
	if out, err := exec.Command("find", dst, "!", "-uid", "99", "-o", "!", "-gid", "98").Output(); err != nil || len(out) != 0 {
		t.Errorf("files with another owner: %s (%v)", out, err)
	}
}

// TestCopyOfALiveTree copies a tree in which files and directories come, change
// their kind and go meanwhile: what stays is copied, and nothing fails.
func TestCopyOfALiveTree(t *testing.T) {
	// In memory, where there is: what is slow here would be the file system.
	base, err := os.MkdirTemp("/dev/shm", "treecopy")
	if err != nil {
		base = t.TempDir()
	}
	defer func() { _ = os.RemoveAll(base) }()
	src := filepath.Join(base, "src")
	for i := range 200 {
		must(t, os.MkdirAll(filepath.Join(src, fmt.Sprint("d", i%10)), 0o755))
		must(t, os.WriteFile(filepath.Join(src, fmt.Sprint("d", i%10), fmt.Sprint("keep", i)), make([]byte, i*100), 0o644))
	}
	stop := make(chan struct{})
	var churn sync.WaitGroup
	for range 2 {
		churn.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				// Any of these may fail: the other does the same.
				path := filepath.Join(src, fmt.Sprint("d", rand.IntN(10)), fmt.Sprint("x", rand.IntN(20)))
				switch rand.IntN(8) {
				case 0:
					// It may be a FIFO by now, which nobody reads.
					if f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NONBLOCK, 0o600); err == nil {
						_, _ = f.Write(make([]byte, rand.IntN(200000)))
						_ = f.Close()
					}
				case 1:
					_ = os.Symlink("nowhere", path)
				case 2:
					_ = unix.Mkfifo(path, 0o600)
				case 3:
					_ = os.MkdirAll(filepath.Join(path, "sub"), 0o755)
				case 4:
					_ = os.Link(path, path+"l")
				case 5:
					_ = os.Truncate(path, int64(rand.IntN(1000)))
				default:
					_ = os.RemoveAll(path)
				}
			}
		})
	}
	for i := range 6 {
		dst := filepath.Join(base, fmt.Sprint(i))
		must(t, os.Mkdir(dst, 0o755))
		if err := Copy(context.Background(), open(t, src), open(t, dst), Options{}); err != nil {
			t.Errorf("copy %d: %v", i, err)
			break // the others must end
		}
		for i := range 200 {
			st, err := os.Stat(filepath.Join(dst, fmt.Sprint("d", i%10), fmt.Sprint("keep", i)))
			if err != nil || st.Size() != int64(i*100) {
				t.Errorf("keep%d: %v, %v", i, st, err)
			}
		}
	}
	close(stop)
	churn.Wait()
}
