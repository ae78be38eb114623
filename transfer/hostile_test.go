package transfer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestOddArchives imports what is allowed and strange.
func TestOddArchives(t *testing.T) {
	needRoot(t)
	reg := func(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeReg, Name: name} }
	dir := func(name string, mode int64) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}
	}
	long := strings.Repeat(strings.Repeat("d", 200)+"/", 19)
	for _, test := range []struct {
		name    string
		headers []*tar.Header
		want    map[string]os.FileMode // by path; 0: not there
	}{
		{"bytes that are not UTF-8", []*tar.Header{reg("etc/\xff\xfe"), reg("etc/\u202e\x1b[2J")}, map[string]os.FileMode{"etc/\xff\xfe": 0o644, "etc/\u202e\x1b[2J": 0o644}},
		{"path of almost 4 KB", []*tar.Header{reg(long + "f")}, map[string]os.FileMode{long + "f": 0o644}},
		{"the last of two wins", []*tar.Header{{Typeflag: tar.TypeSymlink, Name: "etc/a", Linkname: "b"}, reg("etc/b"), {Typeflag: tar.TypeReg, Name: "etc/a", Mode: 0o600}},
			map[string]os.FileMode{"etc/a": 0o600, "etc/b": 0o644}},
		{"directory again, with another mode", []*tar.Header{dir("etc/d/", 0o755), reg("etc/d/f"), dir("etc/d/", 0o700)}, map[string]os.FileMode{"etc/d": os.ModeDir | 0o700, "etc/d/f": 0o644}},
		{"link to itself is replaced by nothing", []*tar.Header{reg("etc/a"), {Typeflag: tar.TypeLink, Name: "etc/b", Linkname: "etc/a"}}, map[string]os.FileMode{"etc/b": 0o644}},
		{"set-uid and sticky", []*tar.Header{{Typeflag: tar.TypeReg, Name: "usr/su", Mode: 0o4755}, dir("tmp/", 0o1777)}, map[string]os.FileMode{"usr/su": os.ModeSetuid | 0o755, "tmp": os.ModeDir | os.ModeSticky | 0o777}},
		{"group of a set-gid directory is not taken over", []*tar.Header{{Typeflag: tar.TypeDir, Name: "var/", Mode: 0o2775, Gid: 50}, {Typeflag: tar.TypeReg, Name: "var/f", Mode: 0o664}},
			map[string]os.FileMode{"var/f": 0o664}},
		{"without its directories", []*tar.Header{reg("a/b/c/d")}, map[string]os.FileMode{"a/b/c": os.ModeDir | 0o755, "a/b/c/d": 0o644}},
		{"directory nobody may enter", []*tar.Header{dir("etc/", 0), reg("etc/f")}, map[string]os.FileMode{"etc/f": 0o644}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			must(t, importBytes(t, root, archive(t, test.headers...)))
			for name, mode := range test.want {
				var st unix.Stat_t
				info, err := os.Lstat(filepath.Join(root, "b", name))
				if err != nil || info.Mode() != mode {
					t.Errorf("%q: got %v and %v, want %v", shorten(name), info, err, mode)
					continue
				}
				must(t, unix.Lstat(filepath.Join(root, "b", name), &st))
				if st.Uid != 0 || st.Gid != 0 {
					t.Errorf("%q: got owner %d:%d, want 0:0", shorten(name), st.Uid, st.Gid)
				}
			}
			clean(t, root)
		})
	}
}

// packed compresses data.
func packed(t *testing.T, format Format, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, format)
	must(t, err)
	_, err = w.Write(data)
	must(t, err)
	must(t, w.Close())
	return out.Bytes()
}

// TestHostileStreams imports what must fail: the error is one line, and nothing is left.
func TestHostileStreams(t *testing.T) {
	needRoot(t)
	good := archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/x"})
	pack := func(format Format, data []byte) []byte { return packed(t, format, data) }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	// A header whose size field says a gigabyte, of the type that precedes an entry.
	huge := func(kind byte) []byte {
		b := bytes.Clone(good[:tarBlock])
		copy(b[124:136], fmt.Sprintf("%011o\x00", 1<<30))
		b[156] = kind
		copy(b[148:156], "        ")
		sum := 0
		for _, c := range b {
			sum += int(c)
		}
		copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
		return join(b, bytes.Repeat([]byte("x"), 4<<20))
	}
	for name, data := range map[string][]byte{
		"gzip, then xz":                 join(pack(Gzip, good[:tarBlock]), pack(XZ, good[tarBlock:])),
		"xz, then gzip":                 join(pack(XZ, good[:tarBlock]), pack(Gzip, good[tarBlock:])),
		"zstd, then rubbish":            join(pack(Zstd, good), []byte("rubbish rubbish")),
		"gzip, then rubbish":            join(pack(Gzip, good), []byte("rubbish rubbish")),
		"xz, then rubbish":              join(pack(XZ, good), []byte("rubbish rubbish")),
		"compressed twice":              pack(Gzip, pack(Gzip, good)),
		"extended header of a gigabyte": huge(tar.TypeXHeader),
		"long name of a gigabyte":       huge(tar.TypeGNULongName),
		"entry of unknown type":         huge('Z')[:2048],
		"owner out of range":            archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/x", Uid: 1 << 33, Format: tar.FormatPAX}),
		"link to what is not there":     archive(t, &tar.Header{Typeflag: tar.TypeLink, Name: "etc/x", Linkname: "etc/y"}),
		"link to a directory":           archive(t, &tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755}, &tar.Header{Typeflag: tar.TypeLink, Name: "x", Linkname: "etc"}),
		"below a file":                  archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "etc"}, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/x"}),
		"symlink loop":                  archive(t, &tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "a"}, &tar.Header{Typeflag: tar.TypeReg, Name: "a/x"}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			err := importBytes(t, root, data)
			if err == nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("import = %v, want an error in one line", err)
			}
			nothingIn(t, root)
		})
	}
}

// TestConcatenatedStreams imports an archive that is compressed in pieces.
func TestConcatenatedStreams(t *testing.T) {
	needRoot(t)
	good := archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/x"}, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/y"})
	for _, format := range []Format{Gzip, XZ, Bzip2, Zstd} {
		var out bytes.Buffer
		for _, part := range [][]byte{good[:700], good[700:1300], good[1300:]} {
			out.Write(packed(t, format, part))
		}
		root := t.TempDir()
		must(t, importBytes(t, root, out.Bytes()))
		if _, err := os.Stat(filepath.Join(root, "b/etc/y")); err != nil {
			t.Errorf("%s: %v", format, err)
		}
	}
}

// sparseArchive is an archive of one file that is one hole of size bytes.
func sparseArchive(size int64) []byte {
	var b [3 * tarBlock]byte
	copy(b[0:], "etc/hole")
	copy(b[100:], "0000644\x000000000\x000000000\x0000000000000\x0000000000000\x00")
	b[156] = tar.TypeGNUSparse
	copy(b[257:], "ustar  \x00")
	// One empty piece at the end, and the real size (GNU tar's old format).
	big := func(at int, v int64) {
		b[at] = 0x80
		for i := range 8 {
			b[at+4+i] = byte(v >> (56 - 8*i))
		}
	}
	big(386, size)
	big(398, 0)
	big(483, size)
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:tarBlock] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b[:]
}

// TestLargeHole imports a file that is a hole: it takes neither disk nor memory.
func TestLargeHole(t *testing.T) {
	needRoot(t)
	const size = 4 << 30
	root := t.TempDir()
	must(t, importBytes(t, root, sparseArchive(size)))
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(root, "b/etc/hole"), &st))
	if st.Size != size || st.Blocks > 64 {
		t.Errorf("got %d bytes in %d blocks, want %d in none", st.Size, st.Blocks, int64(size))
	}
}

// unpackStream unpacks an archive that is made as it is read, entry by entry, and
// returns where. The memory for it is bounded.
func unpackStream(t *testing.T, entries int, entry func(i int) *tar.Header) string {
	t.Helper()
	reader, writer := io.Pipe()
	go func() {
		w := tar.NewWriter(writer)
		err := error(nil)
		for i := 0; i < entries && err == nil; i++ {
			err = w.WriteHeader(entry(i))
		}
		if err == nil {
			err = w.Close()
		}
		_ = writer.CloseWithError(err)
	}()
	dir, err := os.Open(t.TempDir())
	must(t, err)
	defer func() { _ = dir.Close() }()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	must(t, Untar(context.Background(), reader, dir, nil))
	runtime.ReadMemStats(&after)
	t.Logf("%d entries, heap %d MiB", entries, after.HeapSys>>20)
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 150<<20 {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}
	return dir.Name()
}

// TestMemory unpacks a stream made to use memory.
func TestMemory(t *testing.T) {
	needRoot(t)
	unpackStream(t, 40_000, func(i int) *tar.Header {
		// The same few names again and again, so that the disk stays small.
		return &tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("d%d/", i%7), Mode: 0o755, PAXRecords: map[string]string{"comment": strings.Repeat("x", 1000)}}
	})
}

// TestManyEntries unpacks an archive of very many distinct entries, made as it is read:
// MACHINED_TEST_ENTRIES of them, which takes minutes with ten million, or few. What has
// to be remembered of them is bounded.
func TestManyEntries(t *testing.T) {
	needRoot(t)
	entries := 50_000
	if text := os.Getenv("MACHINED_TEST_ENTRIES"); text != "" {
		n, err := strconv.Atoi(text)
		must(t, err)
		entries = n
	}
	dir, file := "", ""
	root := unpackStream(t, entries, func(i int) *tar.Header {
		h := &tar.Header{Mode: 0o755, ModTime: time.Unix(int64(i), 0)}
		switch i % 8 {
		case 0:
			dir = fmt.Sprintf("%x/%x/%x/", i>>16, i>>8&255, i)
			h.Typeflag, h.Name = tar.TypeDir, dir
		case 1:
			file = fmt.Sprintf("%sfile%d", dir, i)
			h.Typeflag, h.Name = tar.TypeReg, file
		case 2:
			h.Typeflag, h.Name, h.Linkname = tar.TypeSymlink, fmt.Sprintf("%slink%d", dir, i), "file"
		default:
			h.Typeflag, h.Name, h.Linkname = tar.TypeLink, fmt.Sprintf("%shard%d", dir, i), file
		}
		return h
	})
	last := entries - 1 - (entries-1)%8
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(root, fmt.Sprintf("%x/%x/%x", last>>16, last>>8&255, last)), &st))
	if st.Mtim.Sec != int64(last) {
		t.Errorf("the last directory is of %d, want %d", st.Mtim.Sec, last)
	}
	must(t, unix.Stat(filepath.Join(root, "0/0/0"), &st))
	if st.Mtim.Sec != 0 {
		t.Errorf("the first directory is of %d, want 0", st.Mtim.Sec)
	}
	must(t, unix.Stat(filepath.Join(root, "0/0/0/file1"), &st))
	if st.Nlink != 6 || st.Mtim.Sec != 1 { // a hard link brings no time of its own
		t.Errorf("the first file has %d names and is of %d, want 6 and 1", st.Nlink, st.Mtim.Sec)
	}
}

// TestReadOnlyTarget imports where nothing can be written.
func TestReadOnlyTarget(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	err := importBytes(t, root, archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/x"}))
	if !errors.Is(err, unix.EROFS) {
		t.Errorf("import = %v, want EROFS", err)
	}
}
