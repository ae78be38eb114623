package transfer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"machined/image"

	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root: owners, device nodes and immutable marks")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// logs collects the lines of a transfer.
type logs struct {
	mu    sync.Mutex
	lines []string
}

func (l *logs) add(_ int, line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
}

func (l *logs) has(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(strings.Join(l.lines, "\n"), part)
}

func request(t testing.TB, kind Kind, root, local string) Request {
	return Request{Kind: kind, Local: local, ImageRoot: root, SearchPath: []string{root}, LockDir: filepath.Join(t.TempDir(), "locks"), Verify: VerifyNo, NoSync: true}
}

func clean(t testing.TB, root string) {
	t.Helper()
	entries, err := os.ReadDir(root)
	must(t, err)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".#") {
			t.Errorf("leftover %q", e.Name())
		}
	}
}

func makeTree(t testing.TB, base string) {
	must(t, os.MkdirAll(filepath.Join(base, "usr/bin"), 0o755))
	must(t, os.MkdirAll(filepath.Join(base, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(base, "etc/os-release"), []byte("ID=test\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(base, "usr/bin/tool"), bytes.Repeat([]byte("tool"), 100_000), 0o755))
	must(t, os.Link(filepath.Join(base, "usr/bin/tool"), filepath.Join(base, "usr/bin/again")))
	must(t, os.Symlink("usr/bin", filepath.Join(base, "bin")))
	must(t, os.Symlink("/etc/shadow", filepath.Join(base, "etc/link")))
	must(t, unix.Mkfifo(filepath.Join(base, "fifo"), 0o620))
	must(t, unix.Mknod(filepath.Join(base, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	sparse, err := os.Create(filepath.Join(base, "sparse"))
	must(t, err)
	must(t, sparse.Truncate(4<<20))
	_, err = sparse.WriteAt([]byte("x"), 2<<20)
	must(t, err)
	must(t, sparse.Close())
	must(t, os.Chown(filepath.Join(base, "usr/bin/tool"), 1000, 1001))
	must(t, os.Chmod(filepath.Join(base, "usr/bin/tool"), 0o755|os.ModeSetuid))
	must(t, os.Lchown(filepath.Join(base, "bin"), 12, 13))
	_ = unix.Setxattr(filepath.Join(base, "usr/bin/tool"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0)
	_ = unix.Setxattr(filepath.Join(base, "etc/os-release"), "user.x", []byte("a\nb=c"), 0)
	acl, err := parseACL("user::rw-,user:1234:r--,group::r--,mask::r--,other::---")
	must(t, err)
	_ = unix.Setxattr(filepath.Join(base, "etc/os-release"), xattrAccess, acl, 0)
	old := unix.NsecToTimespec(1_234_567_890_123_456_789)
	for _, name := range []string{"etc/os-release", "bin", "usr/bin", "usr", "."} {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(base, name), []unix.Timespec{old, old}, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// describe writes a tree down with all that belongs to it.
func describe(t testing.TB, base string) string {
	t.Helper()
	var out strings.Builder
	must(t, filepath.WalkDir(base, func(path string, _ os.DirEntry, err error) error {
		must(t, err)
		rel, _ := filepath.Rel(base, path)
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		size := st.Size
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			size = 0
		}
		links := uint64(st.Nlink)
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			links = 0
		}
		fmt.Fprintf(&out, "%s %o %d:%d %d %d.%09d links %d rdev %d", rel, st.Mode, st.Uid, st.Gid, size, st.Mtim.Sec, st.Mtim.Nsec, links, st.Rdev)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			must(t, err)
			fmt.Fprintf(&out, " %x holes %v", sha256.Sum256(data), st.Blocks*512 < st.Size)
		case unix.S_IFLNK:
			target, _ := os.Readlink(path)
			fmt.Fprintf(&out, " -> %s", target)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			got := records(path)
			for _, key := range []string{"SCHILY.xattr.user.x", "SCHILY.xattr.security.capability", aclAccess} {
				if v, ok := got[key]; ok {
					fmt.Fprintf(&out, " %s=%q", key, v)
				}
			}
		}
		out.WriteByte('\n')
		return nil
	}))
	return out.String()
}

// TestRoundTrip takes a tree out and in again. With MACHINED_TEST_TREE it takes that
// one, as a whole Debian system, too.
func TestRoundTrip(t *testing.T) {
	needRoot(t)
	for _, format := range []Format{Uncompressed, Gzip, XZ, Bzip2, Zstd} {
		t.Run(string(format), func(t *testing.T) {
			root := t.TempDir()
			if tree := os.Getenv("MACHINED_TEST_TREE"); tree != "" {
				command(t, "cp", "-a", tree, filepath.Join(root, "a"))
			}
			odd := filepath.Join(root, "a/srv/odd")
			must(t, os.MkdirAll(odd, 0o755))
			makeTree(t, odd)
			addOddFiles(t, odd)
			want := describe(t, filepath.Join(root, "a"))
			file, err := os.Create(filepath.Join(t.TempDir(), "out"))
			must(t, err)
			defer func() { _ = file.Close() }()
			req := request(t, ExportTar, root, "a")
			req.File, req.Format = file, format
			if err := Run(context.Background(), req); err != nil {
				if format == Bzip2 && errors.Is(err, ErrNotSupported) {
					t.Skip(err)
				}
				t.Fatal(err)
			}
			_, err = file.Seek(0, io.SeekStart)
			must(t, err)
			req = request(t, ImportTar, root, "b")
			req.File = file
			must(t, Run(context.Background(), req))
			got := describe(t, filepath.Join(root, "b"))
			if os.Getenv("MACHINED_TEST_TREE") != "" { // blocks of zeros may become holes
				holes := strings.NewReplacer(" holes true", "", " holes false", "")
				got, want = holes.Replace(got), holes.Replace(want)
			}
			if got != want {
				t.Errorf("tree after round trip:\n%swant:\n%s", got, want)
			}
			// GNU tar reads ours.
			gnu := t.TempDir()
			if out, err := exec.Command("tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "-S", "-xpf", file.Name(), "-C", gnu).CombinedOutput(); err != nil {
				t.Errorf("GNU tar: %v: %s", err, out)
			}
			clean(t, root)
		})
	}
}

func TestImportOfGNUTar(t *testing.T) {
	needRoot(t)
	root, src := t.TempDir(), t.TempDir()
	makeTree(t, src)
	want := describe(t, src)
	path := filepath.Join(t.TempDir(), "a.tar")
	if out, err := exec.Command("tar", "--format=posix", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "-S", "-cf", path, "-C", src, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	file, err := os.Open(path)
	must(t, err)
	defer func() { _ = file.Close() }()
	req := request(t, ImportTar, root, "b")
	req.File = file
	must(t, Run(context.Background(), req))
	if got := describe(t, filepath.Join(root, "b")); got != want {
		t.Errorf("tree:\n%swant:\n%s", got, want)
	}
}

func archive(t testing.TB, headers ...*tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		data := []byte("evil")
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(data))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		must(t, w.WriteHeader(h))
		if h.Typeflag == tar.TypeReg {
			_, err := w.Write(data)
			must(t, err)
		}
	}
	must(t, w.Close())
	return buf.Bytes()
}

func TestHostileArchives(t *testing.T) {
	needRoot(t)
	outside := t.TempDir()
	reg := func(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeReg, Name: name} }
	sym := func(name, to string) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	good := archive(t, reg("etc/x"))
	for _, test := range []struct {
		name string
		data []byte
		fail bool
	}{
		{"dotdot", archive(t, reg("../evil")), true},
		{"dotdot inside", archive(t, reg("a/../../evil")), true},
		{"absolute", archive(t, reg(outside+"/evil")), false},
		{"write through symlink", archive(t, sym("link", outside), reg("link/evil")), true},
		{"write through relative symlink", archive(t, sym("link", strings.Repeat("../", 20)+outside), reg("link/evil")), true},
		{"write onto symlink", archive(t, sym("evil", outside+"/evil"), reg("evil")), false},
		{"hard link out", archive(t, &tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "../../../../etc/passwd"}), true},
		{"hard link through symlink", archive(t, sym("l", "/etc"), &tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "l/passwd"}), true},
		{"dir over symlink", archive(t, sym("d", outside), &tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o755}, reg("d/evil")), false},
		{"file over directory", archive(t, reg("d/f"), reg("d")), true},
		{"root is a file", archive(t, reg(".")), true},
		{"long name", archive(t, reg(strings.Repeat("x", 300))), true},
		{"long path", archive(t, reg(strings.Repeat("x/", 4000)+"y")), true},
		{"truncated", good[:700], true},
		{"flipped", append([]byte{good[0] ^ 1}, good[1:]...), true},
		{"empty", nil, true},
		{"rubbish", bytes.Repeat([]byte("rubbish "), 1000), true},
		{"gzip of rubbish", []byte("\x1f\x8b\x08\x00rubbish"), true},
		{"xz of rubbish", []byte("\xfd7zXZ\x00rubbish"), true},
		{"zstd of rubbish", []byte("\x28\xb5\x2f\xfdrubbish"), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			path := filepath.Join(t.TempDir(), "in.tar")
			must(t, os.WriteFile(path, test.data, 0o600))
			file, err := os.Open(path)
			must(t, err)
			defer func() { _ = file.Close() }()
			req := request(t, ImportTar, root, "b")
			req.File = file
			err = Run(context.Background(), req)
			if (err != nil) != test.fail {
				t.Errorf("import = %v, want failure %v", err, test.fail)
			}
			if left, _ := os.ReadDir(outside); len(left) != 0 {
				t.Errorf("wrote outside: %v", left)
			}
			if _, statErr := os.Lstat(filepath.Join(root, "b")); (statErr != nil) != (err != nil) {
				t.Errorf("image is there: %v, import = %v", statErr == nil, err)
			}
			clean(t, root)
		})
	}
}

func TestPull(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	makeTree(t, src)
	served := t.TempDir()
	if out, err := exec.Command("tar", "-C", src, "-czf", filepath.Join(served, "os.tar.gz"), ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(filepath.Join(served, "os.tar.gz"))
	must(t, err)
	sums := fmt.Sprintf("%x *os.tar.gz\n", sha256.Sum256(data))
	must(t, os.WriteFile(filepath.Join(served, "SHA256SUMS"), []byte(sums), 0o644))
	var full int
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/bad/") && strings.HasSuffix(r.URL.Path, "SHA256SUMS") {
			fmt.Fprintf(w, "%064x  os.tar.gz\n", 1)
			return
		}
		if strings.HasPrefix(r.URL.Path, "/tofile/") {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
			return
		}
		if strings.HasPrefix(r.URL.Path, "/loop/") {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
			return
		}
		if strings.HasSuffix(r.URL.Path, "os.tar.gz") {
			w.Header().Set("ETag", `"v1"`)
			if r.Header.Get("If-None-Match") == "" && r.Header.Get("Range") == "" {
				full++
			}
			if strings.HasPrefix(r.URL.Path, "/cut/") && r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", fmt.Sprint(len(data)))
				_, _ = w.Write(data[:len(data)/2])
				return
			}
		}
		http.StripPrefix("/"+strings.SplitN(r.URL.Path[1:], "/", 2)[0], http.FileServer(http.Dir(served))).ServeHTTP(w, r)
	}))
	defer server.Close()
	root := t.TempDir()
	run := func(path, local string, set func(*Request)) (*logs, error) {
		l := &logs{}
		req := request(t, PullTar, root, local)
		req.Remote, req.Log, req.Verify = server.URL+path, l.add, VerifyChecksum
		if set != nil {
			set(&req)
		}
		return l, Run(context.Background(), req)
	}
	l, err := run("/ok/os.tar.gz", "one", func(r *Request) { r.KeepDownload = true })
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"saving as 'one'.", "failed with code 404.", "proceeding without.", "Downloading ", "SHA256 checksum of", "Created new local image 'one'."} {
		if !l.has(line) {
			t.Errorf("no line with %q in %q", line, l.lines)
		}
	}
	before := full
	if l, err = run("/ok/os.tar.gz", "two", func(r *Request) { r.KeepDownload = true }); err != nil || full != before || !l.has("already downloaded") {
		t.Errorf("second pull = %v, fetched again: %v, log %q", err, full != before, l.lines)
	}
	if _, err = run("/ok/os.tar.gz", "one", nil); !errors.Is(err, image.ErrExists) {
		t.Errorf("pull over an image = %v, want ErrExists", err)
	}
	if _, err = run("/cut/os.tar.gz", "cut", nil); err != nil {
		t.Errorf("pull over a connection that breaks = %v", err)
	}
	if got, want := describe(t, filepath.Join(root, "cut", "etc")), describe(t, filepath.Join(root, "one", "etc")); got != want {
		t.Errorf("resumed tree differs:\n%s\n%s", got, want)
	}
	for _, test := range []struct {
		path string
		set  func(*Request)
		want error
	}{
		{"/bad/os.tar.gz", nil, ErrVerification},
		{"/ok/os.tar.gz", func(r *Request) { r.Verify = VerifySignature; r.Keyrings = []string{"/nonexistent"} }, ErrVerification},
		{"/ok/missing.tar.gz", nil, nil},
		{"/tofile/os.tar.gz", func(r *Request) { r.Verify = VerifyNo }, nil},
		{"/loop/os.tar.gz", func(r *Request) { r.Verify = VerifyNo }, nil},
		{"/", nil, ErrInvalid},
	} {
		_, err := run(test.path, "bad", test.set)
		if err == nil || (test.want != nil && !errors.Is(err, test.want)) {
			t.Errorf("pull %s = %v, want %v", test.path, err, test.want)
		}
		if _, err := os.Lstat(filepath.Join(root, "bad")); err == nil {
			t.Errorf("pull %s left an image", test.path)
		}
	}
	if _, err := run("", "fromfile", func(r *Request) { r.Remote = "file://" + served + "/os.tar.gz" }); err != nil {
		t.Errorf("pull from file:// = %v", err)
	}
	clean(t, root)
	must(t, image.RemoveTree(filepath.Join(root, downloadName(root, ".tar-", server.URL+"/ok/os.tar.gz", `"v1"`, ""))))
}

func FuzzUntar(f *testing.F) {
	f.Add(archive(f, &tar.Header{Typeflag: tar.TypeReg, Name: "a/b"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir, err := os.Open(t.TempDir())
		must(t, err)
		defer func() { _ = dir.Close() }()
		_ = Untar(context.Background(), bytes.NewReader(data), dir, nil)
	})
}

func FuzzQcow2(f *testing.F) {
	f.Add([]byte("QFI\xfb\x00\x00\x00\x03"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 32 { // keep the claimed disk small: its size is not what is tested
			data[24], data[25], data[26], data[27] = 0, 0, 0, 0
		}
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		must(t, err)
		defer func() { _ = out.Close() }()
		_ = unpackQcow2(context.Background(), bytes.NewReader(data), int64(len(data)), out)
	})
}

func FuzzParseChecksums(f *testing.F) {
	f.Add([]byte(strings.Repeat("a", 64) + "  file\n"))
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = parseChecksums(data) })
}

func FuzzEscapeName(f *testing.F) {
	f.Add("https://x/a.tar?\"'\\\x00ü")
	f.Fuzz(func(t *testing.T, s string) {
		escaped := escapeName(s)
		if strings.ContainsAny(escaped, "/.#") {
			t.Errorf("escapeName(%q) = %q", s, escaped)
		}
		if got, ok := unescapeName(escaped); !ok || got != s {
			t.Errorf("unescapeName(escapeName(%q)) = %q, %v", s, got, ok)
		}
	})
}
