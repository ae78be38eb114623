package transfer

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func exportOCI(t *testing.T, root, name string, format Format) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "out.tar")
	f, err := os.Create(path)
	must(t, err)
	defer func() { _ = f.Close() }()
	return path, Run(context.Background(), Request{
		Kind: ExportOCI, Local: name, ImageRoot: root, SearchPath: []string{root}, LockDir: t.TempDir(), NoSync: true, File: f, Format: format,
	})
}

// TestExportOCI takes an image away and brings it back: everything that a layer can do to
// those below survives, in each compression. It is checked by code that is not ours.
func TestExportOCI(t *testing.T) {
	needRoot(t)
	host := testRegistry(t, nil)
	push(t, host, "a:1", whiteoutImage(t))
	root := poolDir(t)
	must(t, pullOCI(t, root, host+"/a:1", nil))
	must(t, os.MkdirAll(filepath.Join(root, "img.mstack/rw/data/mine"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "img.mstack/rw/data/mine/x"), nil, 0o600))
	for _, format := range []Format{"", Gzip, Zstd, Uncompressed} {
		t.Run(string(format), func(t *testing.T) {
			path, err := exportOCI(t, root, "img", format)
			must(t, err)
			dir := t.TempDir()
			if out, err := exec.Command("tar", "-xf", path, "-C", dir).CombinedOutput(); err != nil {
				t.Fatalf("tar: %v: %s", err, out)
			}
			at, err := layout.FromPath(dir)
			must(t, err)
			index, err := at.ImageIndex()
			must(t, err)
			manifest, err := index.IndexManifest()
			must(t, err)
			if manifest.MediaType != types.OCIImageIndex || len(manifest.Manifests) != 1 {
				t.Fatalf("index: %+v", manifest)
			}
			img, err := index.Image(manifest.Manifests[0].Digest)
			must(t, err)
			if format == "" || format == Gzip {
				must(t, validate.Image(img))
			} else {
				must(t, validate.Image(img, validate.Fast))
			}
			config, err := img.ConfigFile()
			must(t, err)
			if len(config.RootFS.DiffIDs) != 4 || config.Config.User != "www:www" || config.Config.WorkingDir != "/srv" {
				t.Errorf("configuration: %+v", config)
			}
			back := poolDir(t)
			for i, form := range []string{"oci-archive:", "docker-archive:"} {
				must(t, pullOCI(t, back, form+path, func(r *Request) { r.Local = fmt.Sprint("back", i) }))
				got := filesBelow(t, mountStack(t, filepath.Join(back, fmt.Sprintf("back%d.mstack", i))))
				if want := "[dir/new late mine/x todir/in tofile usr/bin/app]"; fmt.Sprint(got) != want {
					t.Errorf("%s got %v, want %v", form, got, want)
				}
			}
			want, _ := os.ReadFile(filepath.Join(root, "img.nspawn"))
			if got, err := os.ReadFile(filepath.Join(back, "back0.nspawn")); err != nil || string(got) != string(want) {
				t.Errorf("settings: got %s, %v, want %s", got, err, want)
			}
		})
	}
	// A tree of its own, and what is refused.
	must(t, os.MkdirAll(filepath.Join(root, "tree/usr/lib"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "disk.raw"), []byte("x"), 0o600))
	path, err := exportOCI(t, root, "tree", "")
	must(t, err)
	must(t, pullOCI(t, poolDir(t), "oci-archive:"+path+":tree", nil))
	for name, format := range map[string]Format{"disk": "", "tree": XZ, "absent": ""} {
		if _, err := exportOCI(t, root, name, format); err == nil {
			t.Errorf("export of %s as %q: got no error", name, format)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(root, ".#*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if keep := os.Getenv("KEEP_EXPORT"); keep != "" {
		must(t, os.Rename(path, keep+".tree.tar"))
		path, err := exportOCI(t, root, "img", "")
		must(t, err)
		must(t, os.Rename(path, keep+".tar"))
	}
}
