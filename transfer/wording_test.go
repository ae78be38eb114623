package transfer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestReasons imports what is broken in ways that people meet, and reads the reason.
func TestReasons(t *testing.T) {
	needRoot(t)
	good := archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/x"}, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/y"})
	pack := func(format Format, data []byte) []byte { return packed(t, format, data) }
	flip := func(data []byte, at int) []byte {
		data = bytes.Clone(data)
		data[at] ^= 0xff
		return data
	}
	huge := bytes.Clone(sparseArchive(1 << 62))
	for _, test := range []struct {
		name string
		data []byte
		want string // after "bad archive: "
	}{
		{"a page", []byte(strings.Repeat("<html>not found</html>\n", 100)), `it is no tar archive`},
		{"a few bytes", []byte("abc"), `it is no tar archive`},
		{"a zip file", append([]byte("PK\x03\x04"), make([]byte, 100)...), `it is no tar archive`},
		{"a header that is broken", flip(good, 1024), `the header after entry 1 is broken`},
		{"rubbish behind", append(bytes.Clone(good), bytes.Repeat([]byte("rubbish "), 64)...), `the header after entry 2 is broken`},
		{"cut xz", pack(XZ, good)[:100], `it ends too early`},
		{"cut bzip2", pack(Bzip2, good)[:100], `it ends too early`},
		{"cut zstd", pack(Zstd, good)[:60], `it ends too early`},
		{"cut gzip", pack(Gzip, good)[:60], `it ends too early`},
		{"broken xz", flip(pack(XZ, good), 60), `its xz stream is corrupt`},
		{"broken bzip2", flip(pack(Bzip2, good), 60), `its bzip2 stream is corrupt`},
		{"xz, then rubbish", append(pack(XZ, good), "rubbish rubbish"...), `its xz stream is corrupt`},
		{"bzip2, then rubbish", append(pack(Bzip2, good), "rubbish rubbish"...), `data follow the end of its bzip2 stream`},
		{"zstd, then rubbish", append(pack(Zstd, good), "rubbish rubbish"...), `data follow the end of its zstd stream`},
		{"a file of 4 EiB", huge, `it claims to have 4611686018427387904 bytes`},
		{"below a file", archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "p"}, &tar.Header{Typeflag: tar.TypeReg, Name: "p/x"}), `"p": not a directory`},
		{"over a directory", archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "p/x"}, &tar.Header{Typeflag: tar.TypeReg, Name: "p"}), `there is a directory of that name, which has entries`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			began := time.Now()
			err := importBytes(t, root, test.data)
			if !errors.Is(err, ErrArchive) || !regexp.MustCompile(`bad archive: `+test.want+`$`).MatchString(err.Error()) || strings.Count(err.Error(), "bad archive") != 1 {
				t.Errorf("import = %v, want one bad archive: %s", err, test.want)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
			nothingIn(t, root)
		})
	}
}

// TestArchivesInARow imports archives that follow one another in a file, as stock does.
func TestArchivesInARow(t *testing.T) {
	needRoot(t)
	first := archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/x"})
	second := archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/y"})
	for name, data := range map[string][]byte{
		"plain":             append(bytes.Clone(first), second...),
		"with padding":      append(append(bytes.Clone(first), make([]byte, 10240)...), second...),
		"packed one by one": append(gzipped(t, first), gzipped(t, second)...),
	} {
		root := t.TempDir()
		must(t, importBytes(t, root, data))
		for _, file := range []string{"x", "y"} {
			if _, err := os.Stat(filepath.Join(root, "b/etc", file)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	for range 64 {
		_, err := z.Write(make([]byte, 1<<20))
		must(t, err)
	}
	must(t, z.Close())
	root := t.TempDir()
	if err := importBytes(t, root, out.Bytes()); err == nil || !strings.Contains(err.Error(), "it holds nothing") {
		t.Errorf("a stream of zeros: %v", err)
	}
}

// TestGNUArchives imports what GNU tar writes beside plain archives: one with a name
// for its volume, and an incremental one, whose directories list their entries.
func TestGNUArchives(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(src, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "etc/x"), []byte("x"), 0o644))
	for name, args := range map[string][]string{
		"volume":      {"--label=a name"},
		"incremental": {"--listed-incremental=" + filepath.Join(t.TempDir(), "list")},
		"old":         {"--format=v7"},
	} {
		data, err := exec.Command("tar", append(args, "-C", src, "-cf", "-", ".")...).Output()
		must(t, err)
		root := t.TempDir()
		if err := importBytes(t, root, data); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := os.ReadFile(filepath.Join(root, "b/etc/x"))
		if string(got) != "x" {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
		if entries, _ := os.ReadDir(filepath.Join(root, "b")); len(entries) != 1 {
			t.Errorf("%s: more than was packed: %v", name, entries)
		}
	}
}

// loopingQcow2 is an image of a disk of size bytes whose first table has the same
// second table everywhere, and that one and the same cluster of data everywhere.
func loopingQcow2(size uint64) []byte {
	const cluster = 1 << 16
	data := make([]byte, 4*cluster)
	be := binary.BigEndian
	be.PutUint32(data, qcow2Magic)
	be.PutUint32(data[4:], 2)
	be.PutUint32(data[20:], 16)
	be.PutUint64(data[24:], size)
	be.PutUint32(data[36:], uint32(size/(cluster/8*cluster)))
	be.PutUint64(data[40:], cluster)
	for i := range cluster / 8 {
		be.PutUint64(data[cluster+8*i:], 2*cluster)
		be.PutUint64(data[2*cluster+8*i:], 3*cluster)
	}
	copy(data[3*cluster:], bytes.Repeat([]byte("data"), cluster/4))
	return data
}

// TestLoopingQcow2 unpacks tables that refer to the same clusters again and again.
func TestLoopingQcow2(t *testing.T) {
	for _, size := range []uint64{512 << 20, 1 << 40} {
		data := loopingQcow2(size)
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		must(t, err)
		err = unpackQcow2(context.Background(), bytes.NewReader(data), int64(len(data)), out)
		if !errors.Is(err, errReused) {
			t.Errorf("%s: got %v", fmt.Sprint(size), err)
		}
		must(t, out.Close())
	}
}
