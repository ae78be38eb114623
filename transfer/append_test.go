package transfer

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestExportAfterSomething: what is in a file before the place where an export begins
// stays there; of a file that is overwritten nothing does.
func TestExportAfterSomething(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	makeTree(t, filepath.Join(root, "tree"))
	must(t, os.WriteFile(filepath.Join(root, "disk.raw"), append(make([]byte, 1<<20), "end"...), 0o644))
	const before = "something of mine"
	for _, kind := range []Kind{ExportTar, ExportRaw} {
		for name, open := range map[string]struct {
			flags int
			seek  int64
			keeps bool
		}{
			"append":    {os.O_WRONLY | os.O_APPEND, 0, true},
			"following": {os.O_WRONLY, int64(len(before)), true},
			"over":      {os.O_WRONLY, 0, false},
		} {
			t.Run(string(kind)+" "+name, func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "out")
				content := before
				if !open.keeps {
					content += strings.Repeat("x", 4<<20)
				}
				must(t, os.WriteFile(file, []byte(content), 0o644))
				f, err := os.OpenFile(file, open.flags, 0)
				must(t, err)
				_, err = f.Seek(open.seek, io.SeekStart)
				must(t, err)
				req := request(t, kind, root, map[Kind]string{ExportTar: "tree", ExportRaw: "disk"}[kind])
				req.File, req.Format = f, Uncompressed
				must(t, Run(context.Background(), req))
				must(t, f.Close())
				data, err := os.ReadFile(file)
				must(t, err)
				rest, kept := strings.CutPrefix(string(data), before)
				if kept != open.keeps {
					t.Errorf("kept what was there: %v, want %v", kept, open.keeps)
				}
				if kind == ExportRaw && (len(rest) != 1<<20+3 || !strings.HasSuffix(rest, "\x00end")) {
					t.Errorf("the disk has %d bytes", len(rest))
				}
				if kind == ExportTar {
					must(t, os.WriteFile(file, []byte(rest), 0o644))
					command(t, "tar", "-tf", file)
				}
			})
		}
	}
}
