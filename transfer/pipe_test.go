package transfer

import (
	"archive/tar"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSilentPipe ends transfers whose other end does nothing: from a pipe that nobody
// writes to, and into one that nobody reads. Nothing is left.
func TestSilentPipe(t *testing.T) {
	needRoot(t)
	start := archive(t, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/x"})
	for _, format := range []Format{Uncompressed, Gzip, XZ} {
		for _, kind := range []Kind{ImportTar, ImportRaw, ExportTar, ExportRaw} {
			t.Run(string(kind)+" "+string(format), func(t *testing.T) {
				t.Parallel()
				root := t.TempDir()
				from, to, err := os.Pipe()
				must(t, err)
				defer func() { _, _ = from.Close(), to.Close() }()
				req := request(t, kind, root, "b")
				req.File, req.Format = from, format
				if kind.Exports() {
					req.File = to
					must(t, os.MkdirAll(filepath.Join(root, "b/etc"), 0o755))
					content := []byte(strings.Repeat("0123456789abcdef\x00", 1<<20))
					if kind == ExportRaw {
						must(t, os.Remove(filepath.Join(root, "b/etc")))
						must(t, os.Remove(filepath.Join(root, "b")))
						must(t, os.WriteFile(filepath.Join(root, "b.raw"), content, 0o644))
					} else {
						must(t, os.WriteFile(filepath.Join(root, "b/etc/big"), content, 0o644))
					}
				} else {
					_, err = to.Write(start[:700])
					must(t, err)
				}
				ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
				defer cancel()
				ended := make(chan error, 1)
				go func() { ended <- Run(ctx, req) }()
				select {
				case err = <-ended:
				case <-time.After(20 * time.Second):
					t.Fatal("it does not end")
				}
				// What is small when it is packed fits into the pipe.
				if err != nil && !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
					t.Errorf("got %v", err)
				}
				if !kind.Exports() {
					if err == nil {
						t.Error("imported")
					}
					nothingIn(t, root)
				}
			})
		}
	}
}

// TestBadArchiveFromPipe imports rubbish from pipes that stay open: the error comes at once,
// however it is compressed. Not so with xz(1): it may keep what it has decoded until it gets more.
func TestBadArchiveFromPipe(t *testing.T) {
	needRoot(t)
	rubbish := make([]byte, 2<<20)
	for i := range rubbish {
		rubbish[i] = byte(rand.Uint32())
	}
	for _, format := range []Format{Uncompressed, Gzip, Bzip2, Zstd} {
		t.Run(string(format), func(t *testing.T) {
			t.Parallel()
			data := packed(t, format, rubbish)
			for range 5 {
				root := t.TempDir()
				from, to, err := os.Pipe()
				must(t, err)
				go func() { _, _ = to.Write(data[:len(data)-20]) }()
				req := request(t, ImportTar, root, "b")
				req.File = from
				ended := make(chan error, 1)
				go func() { ended <- Run(context.Background(), req) }()
				select {
				case err = <-ended:
				case <-time.After(50 * time.Second):
					t.Fatal("it does not end")
				}
				_, _ = from.Close(), to.Close()
				if !errors.Is(err, ErrArchive) {
					t.Errorf("got %v", err)
				}
				nothingIn(t, root)
			}
		})
	}
}
