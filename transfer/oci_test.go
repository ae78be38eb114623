package transfer

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"machined/image"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
)

// layerOf makes a layer: names with a slash at their end are directories.
func layerOf(t *testing.T, names ...string) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, n := range names {
		h := &tar.Header{Name: n, Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(n))}
		if strings.HasSuffix(n, "/") {
			h.Typeflag, h.Mode, h.Size = tar.TypeDir, 0o755, 0
		} else if strings.Contains(n, whiteout) {
			h.Size = 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			_, _ = w.Write([]byte(n))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func ociImage(t *testing.T, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", "amd64"
	file.Config = v1.Config{
		Entrypoint: []string{"/bin/app", "a b"}, Cmd: []string{`quo"te`}, Env: []string{"PATH=/bin", "MSG=two words"},
		User: "www:www", WorkingDir: "/srv", ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}},
	}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	return img
}

// whiteoutImage has in its layers each thing a layer can do to those below.
func whiteoutImage(t *testing.T) v1.Image {
	return ociImage(t,
		layerOf(t, "usr/", "usr/bin/", "usr/bin/app", "gone", "dir/", "dir/old", "dir/sub/", "dir/sub/old", "todir", "tofile/", "tofile/x"),
		layerOf(t, ".wh.gone", "dir/", "dir/new", "dir/.wh..wh..opq", "todir/", "todir/in", "tofile"),
		layerOf(t, "late", "usr/bin/.wh.missing"),
	)
}

var whiteoutWant = []string{"dir/new", "late", "todir/in", "tofile", "usr/bin/app"}

func filesBelow(t *testing.T, root string) []string {
	t.Helper()
	var got []string
	err := filepath.Walk(root, func(p string, st os.FileInfo, err error) error {
		if err == nil && st.Mode().IsRegular() {
			rel, _ := filepath.Rel(root, p)
			got = append(got, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// testRegistry serves a registry on loopback and returns its host:port.
func testRegistry(t *testing.T, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	var handler http.Handler = registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		handler = wrap(handler)
	}
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

func push(t *testing.T, host, repo string, img v1.Image, options ...remote.Option) {
	t.Helper()
	ref, err := name.ParseReference(host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, options...); err != nil {
		t.Fatal(err)
	}
}

// poolDir is a directory for images; layers in it are immutable.
func poolDir(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	t.Cleanup(func() {
		entries, _ := os.ReadDir(root)
		for _, e := range entries {
			_ = image.RemoveTree(filepath.Join(root, e.Name()))
		}
	})
	return root
}

func pullOCI(t *testing.T, root, reference string, change func(*Request)) error {
	t.Helper()
	req := Request{
		Kind: PullOCI, Local: "img", Remote: reference, ImageRoot: root, SearchPath: []string{root}, LockDir: t.TempDir(), NoSync: true,
	}
	if change != nil {
		change(&req)
	}
	return Run(context.Background(), req)
}

func TestPullOCI(t *testing.T) {
	needRoot(t)
	img := whiteoutImage(t)
	host := testRegistry(t, nil)
	push(t, host, "team/app:1", img)
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	index, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := index.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "v1"})); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("app:1")
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "saved.tar")
	if err := tarball.WriteToFile(archive, tag, img); err != nil {
		t.Fatal(err)
	}
	for _, reference := range []string{
		host + "/team/app:1", host + "/team/app@" + digest.String(),
		"oci:" + dir + "/layout", "oci:" + dir + "/layout:v1", "docker-archive:" + archive,
	} {
		t.Run(reference[:6], func(t *testing.T) {
			root := poolDir(t)
			if err := pullOCI(t, root, reference, nil); err != nil {
				t.Fatal(err)
			}
			stack := filepath.Join(root, "img.mstack")
			if got := filesBelow(t, mountStack(t, stack)); fmt.Sprint(got) != fmt.Sprint(whiteoutWant) {
				t.Errorf("got %v, want %v", got, whiteoutWant)
			}
			settings, err := os.ReadFile(filepath.Join(root, "img.nspawn"))
			if err != nil {
				t.Fatal(err)
			}
			want := "# From the configuration of an OCI image.\n[Exec]\nBoot=no\nProcessTwo=yes\n" +
				`Parameters=/bin/app "a b" "quo\"te"` + "\nEnvironment=PATH=/bin\n" + `Environment="MSG=two words"` +
				"\nWorkingDirectory=/srv\nUser=www:www\nKillSignal=SIGTERM\n\n# Counts in a copy of this file in /etc/systemd/nspawn only.\n" +
				"[Network]\nPort=tcp:80\nPort=udp:53\n"
			if string(settings) != want {
				t.Errorf("settings: got\n%s\nwant\n%s", settings, want)
			}
			var layers int
			entries, err := os.ReadDir(root)
			for _, e := range entries {
				if strings.HasPrefix(e.Name(), image.LayerPrefix) {
					layers++
				}
			}
			if err != nil || layers != 3 || len(entries) != 6 { // the stack, its settings and configuration
				t.Errorf("in the pool: %v, %v", entries, err)
			}
		})
	}
}

// mountStack mounts the layers of an image on each other, as the spawner does.
func mountStack(t *testing.T, stack string) string {
	t.Helper()
	var lower []string
	for i := 0; ; i++ {
		layer, err := filepath.EvalSymlinks(filepath.Join(stack, fmt.Sprintf("layer@%d", i)))
		if err != nil {
			break
		}
		lower = append([]string{layer}, lower...)
	}
	if len(lower) == 0 {
		t.Fatalf("no layers in %s", stack)
	}
	at, top := t.TempDir(), t.TempDir()
	if err := unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, "lowerdir="+escapeColons(strings.Join(append([]string{top}, lower...), "\x00"))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	return at
}

func escapeColons(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, ":", `\:`), "\x00", ":")
}

func TestPullOCISharesLayers(t *testing.T) {
	needRoot(t)
	blobs := 0
	host := testRegistry(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				blobs++
			}
			next.ServeHTTP(w, r)
		})
	})
	base := layerOf(t, "usr/", "usr/a")
	one, two := ociImage(t, base, layerOf(t, "one")), ociImage(t, base, layerOf(t, "two"))
	push(t, host, "one:1", one)
	push(t, host, "two:1", two)
	root := poolDir(t)
	store := image.NewStore(image.Config{PoolDir: root, SearchPath: []string{root}, NspawnDirs: []string{}, LockDir: t.TempDir(), NoHost: true})
	layers := func() int {
		t.Helper()
		list, err := filepath.Glob(filepath.Join(root, image.LayerPrefix+"sha256:*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	pull := func(reference, local string, change func(*Request)) {
		t.Helper()
		err := pullOCI(t, root, reference, func(r *Request) {
			r.Local = local
			if change != nil {
				change(r)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	pull(host+"/one:1", "one", nil)
	before := blobs
	pull(host+"/two:1", "two", nil)
	if got := blobs - before; got != 2 || layers() != 3 { // the configuration and one layer
		t.Errorf("blobs fetched: got %d, want 2; layers: got %d, want 3", got, layers())
	}
	// The same image from an archive has the same layers.
	tag, err := name.NewTag("one:1")
	if err != nil {
		t.Fatal(err)
	}
	saved := filepath.Join(t.TempDir(), "saved.tar")
	if err := tarball.WriteToFile(saved, tag, one); err != nil {
		t.Fatal(err)
	}
	pull("docker-archive:"+saved, "again", nil)
	if layers() != 3 {
		t.Errorf("layers after an archive: got %d, want 3", layers())
	}
	ctx := context.Background()
	if err := store.Clone(ctx, "one", "clone", false); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		remove string
		want   int
	}{{"one", 3}, {"again", 3}, {"two", 2}} {
		if err := store.Remove(ctx, step.remove); err != nil {
			t.Fatal(err)
		}
		if layers() != step.want {
			t.Errorf("layers after %s was removed: got %d, want %d", step.remove, layers(), step.want)
		}
	}
	if _, err := store.Clean(ctx, image.CleanHidden); err != nil || layers() != 2 {
		t.Errorf("clean: got %v, %d layers, want 2", err, layers())
	}
	if got := filesBelow(t, mountStack(t, filepath.Join(root, "clone.mstack"))); fmt.Sprint(got) != "[one usr/a]" {
		t.Errorf("clone: got %v", got)
	}
	layer := filepath.Base(image.LayerName("")) // any
	if list, err := store.List(ctx); err != nil || len(list) != 3 || !strings.HasPrefix(list[0].Name, layer) {
		t.Errorf("list: %v, %v", list, err)
	} else if err := store.Remove(ctx, list[0].Name); !errors.Is(err, image.ErrBusy) {
		t.Errorf("remove a layer that is listed: got %v, want ErrBusy", err)
	}
	// Layers alone, and layers that are to be kept, stay until the pool is cleaned.
	pull(host+"/two:1", "", nil)
	pull(host+"/one:1", "kept", func(r *Request) { r.KeepDownload = true })
	for _, name := range []string{"kept", "clone"} {
		if err := store.Remove(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if layers() != 3 {
		t.Errorf("kept layers: got %d, want 3", layers())
	}
	if _, err := store.Clean(ctx, image.CleanHidden); err != nil || layers() != 0 {
		t.Errorf("clean: got %v, %d layers, want none", err, layers())
	}
	if entries, _ := os.ReadDir(root); len(entries) != 0 {
		t.Errorf("left: %v", entries)
	}
}

func TestPullOCILogin(t *testing.T) {
	needRoot(t)
	host := testRegistry(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, pass, _ := r.BasicAuth(); user != "me" || pass != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	config := t.TempDir()
	t.Setenv("DOCKER_CONFIG", config)
	root := poolDir(t)
	if err := pullOCI(t, root, host+"/a:1", nil); err == nil || !strings.Contains(err.Error(), "UNAUTHORIZED") && !strings.Contains(err.Error(), "401") {
		t.Errorf("without a login: got %v, want an error that says unauthorized", err)
	}
	text := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("me:secret")))
	if err := os.WriteFile(filepath.Join(config, "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	push(t, host, "a:1", ociImage(t, layerOf(t, "usr/", "usr/a")), remote.WithAuth(basic{}))
	if err := pullOCI(t, root, host+"/a:1", nil); err != nil {
		t.Fatal(err)
	}
}
