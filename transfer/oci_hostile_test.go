package transfer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"machined/image"

	"golang.org/x/sys/unix"
)

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func gz(t *testing.T, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(data)
	must(t, err)
	must(t, w.Close())
	return out.Bytes()
}

// madeImage is an image whose every part a test can change.
type madeImage struct {
	layers   [][]byte // as they are sent
	diffIDs  []string
	manifest map[string]any
	config   map[string]any
	blobs    map[string][]byte // by digest, in the place of what belongs there
	// answer replaces the handler for a path, when it says so.
	answer func(w http.ResponseWriter, r *http.Request) bool
}

// newImage makes an image of archives, which are compressed.
func newImage(t *testing.T, archives ...[]byte) *madeImage {
	t.Helper()
	m := &madeImage{blobs: map[string][]byte{}}
	for _, a := range archives {
		m.layers, m.diffIDs = append(m.layers, gz(t, a)), append(m.diffIDs, digestOf(a))
	}
	m.seal(t)
	return m
}

// seal makes configuration and manifest of the layers.
func (m *madeImage) seal(t *testing.T) {
	t.Helper()
	m.config = map[string]any{"os": "linux", "architecture": runtime.GOARCH, "config": map[string]any{"Cmd": []string{"/bin/x"}}, "rootfs": map[string]any{"type": "layers", "diff_ids": m.diffIDs}}
	var layers []any
	for _, l := range m.layers {
		layers = append(layers, map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digestOf(l), "size": len(l)})
		m.blobs[digestOf(l)] = l
	}
	m.manifest = map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": layers}
	m.configure(t)
}

// configure puts the configuration into the manifest.
func (m *madeImage) configure(t *testing.T) {
	t.Helper()
	data, err := json.Marshal(m.config)
	must(t, err)
	m.manifest["config"] = map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digestOf(data), "size": len(data)}
	m.blobs[digestOf(data)] = data
}

func (m *madeImage) layer(i int) map[string]any {
	return m.manifest["layers"].([]any)[i].(map[string]any)
}

// serve serves it as any name and tag.
func (m *madeImage) serve(t *testing.T) (host string) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m.answer != nil && m.answer(w, r) {
			return
		}
		last := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		switch {
		case r.URL.Path == "/v2/":
		case strings.Contains(r.URL.Path, "/manifests/") && !strings.HasPrefix(last, "sha256:"):
			data, _ := json.Marshal(m.manifest)
			w.Header().Set("Content-Type", fmt.Sprint(m.manifest["mediaType"]))
			_, _ = w.Write(data)
		default:
			data, ok := m.blobs[last]
			if !ok {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = w.Write(data)
		}
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// only serves one answer for paths that have a part.
func only(part string, answer func(w http.ResponseWriter, r *http.Request)) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, part) {
			return false
		}
		answer(w, r)
		return true
	}
}

func reg(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }

// TestHostileOCI pulls what must fail: in one line that says why, with nothing left.
func TestHostileOCI(t *testing.T) {
	needRoot(t)
	good := archive(t, reg("usr/x"))
	status := func(code int) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	to := func(url string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", strings.ReplaceAll(url, "SELF", r.URL.Path))
			w.WriteHeader(http.StatusTemporaryRedirect)
		}
	}
	endless := func(w http.ResponseWriter, _ *http.Request) {
		for chunk := bytes.Repeat([]byte("x"), 1<<16); ; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
	type change = func(t *testing.T, m *madeImage)
	manifest := func(key string, value any) change {
		return func(_ *testing.T, m *madeImage) { m.manifest[key] = value }
	}
	layer := func(key string, value any) change {
		return func(_ *testing.T, m *madeImage) { m.layer(0)[key] = value }
	}
	config := func(key string, value any) change {
		return func(t *testing.T, m *madeImage) { m.config[key] = value; m.configure(t) }
	}
	answer := func(part string, f func(http.ResponseWriter, *http.Request)) change {
		return func(_ *testing.T, m *madeImage) { m.answer = only(part, f) }
	}
	body := func(change func(data []byte) []byte) change {
		return func(_ *testing.T, m *madeImage) { m.blobs[digestOf(m.layers[0])] = change(bytes.Clone(m.layers[0])) }
	}
	packed := func(data []byte) change { // a layer that is what its digests say
		return func(t *testing.T, m *madeImage) {
			*m = madeImage{blobs: map[string][]byte{}, layers: [][]byte{gz(t, data)}, diffIDs: []string{digestOf(data)}}
			m.seal(t)
		}
	}
	many := make([]any, 1001)
	for i := range many {
		many[i] = map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digestOf([]byte{byte(i), byte(i >> 8)}), "size": 10}
	}
	index := func(entries ...any) change {
		return func(_ *testing.T, m *madeImage) {
			m.manifest = map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
		}
	}
	bomb := func(t *testing.T, m *madeImage) {
		var out bytes.Buffer
		sum := sha256.New()
		z, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
		must(t, err)
		w := tar.NewWriter(io.MultiWriter(z, sum))
		const size = 3 << 29
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Size: size}))
		for zero := make([]byte, 1<<20); ; {
			if _, err := w.Write(zero); errors.Is(err, tar.ErrWriteTooLong) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		must(t, w.Close())
		must(t, z.Close())
		*m = madeImage{blobs: map[string][]byte{}, layers: [][]byte{out.Bytes()}, diffIDs: []string{"sha256:" + hex.EncodeToString(sum.Sum(nil))}}
		m.seal(t)
	}
	for _, tt := range []struct {
		name   string
		change change
		want   string
	}{
		{"manifest that is no JSON", answer("/manifests/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{]") }), "its manifest"},
		{"manifest without end", answer("/manifests/", endless), "more than 4194304 bytes"},
		{"manifest of version 1", manifest("schemaVersion", 1), "version 1"},
		{"manifest of another type", manifest("mediaType", "text/plain"), "unknown type"},
		{"manifest without layers", manifest("layers", []any{}), "no layers"},
		{"a thousand layers and one", manifest("layers", many), "1001 layers"},
		{"more different layers than overlayfs stacks", func(t *testing.T, m *madeImage) {
			ids := make([]string, 600)
			for i := range ids {
				ids[i] = digestOf([]byte{byte(i)})
			}
			m.manifest["layers"] = many[:600]
			m.config["rootfs"] = map[string]any{"diff_ids": ids}
			m.configure(t)
		}, "overlayfs stacks 500"},
		{"manifest that is an index too", manifest("manifests", []any{}), "an index too"},
		{"configuration of a gigabyte", manifest("config", map[string]any{"mediaType": "x", "digest": digestOf(nil), "size": 1 << 30}), "is larger than"},
		{"configuration that is not there", manifest("config", map[string]any{"mediaType": "x", "digest": digestOf([]byte("no")), "size": 2}), "no such image"},
		{"configuration with a bad digest", manifest("config", map[string]any{"mediaType": "x", "digest": "sha256:../../etc/passwd", "size": 2}), "manifest"},
		{"configuration of fewer layers", config("rootfs", map[string]any{"diff_ids": []string{}}), "0 layers"},
		{"configuration of another archive", config("rootfs", map[string]any{"diff_ids": []string{digestOf(nil)}}), "the digest of its archive"},
		{"another architecture", config("architecture", "pdp11"), "pdp11"},
		{"index without this platform", index(map[string]any{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digestOf(nil), "size": 2, "platform": map[string]any{"os": "plan9", "architecture": "mips"}}), "no image for linux"},
		{"index with a huge entry", index(map[string]any{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digestOf(nil), "size": 1 << 40}), "is larger than"},
		{"indexes in each other", func(t *testing.T, m *madeImage) {
			for range 6 {
				data, err := json.Marshal(m.manifest)
				must(t, err)
				m.blobs[digestOf(data)] = data
				index(map[string]any{"mediaType": m.manifest["mediaType"], "digest": digestOf(data), "size": len(data)})(t, m)
			}
		}, "nested too deeply"},
		{"layer that changed on the way", body(func(b []byte) []byte { b[len(b)-9] ^= 1; return b }), "layer 1 of 1"},
		{"layer that is another", body(func([]byte) []byte { return gz(t, archive(t, reg("usr/y"))) }), "verification failed"},
		{"layer that is longer", body(func(b []byte) []byte { return append(b, b...) }), "more than"},
		{"layer that is shorter", body(func(b []byte) []byte { return b[:len(b)-20] }), "layer 1 of 1"},
		{"layer without end", answer("/blobs/"+digestOf(gz(t, good)), endless), "layer 1 of 1"},
		{"layer with a negative size", layer("size", -1), "negative size"},
		{"layer of an exabyte", layer("size", 1<<60), "is larger than"},
		{"layer with a digest of another kind", layer("digest", "md5:d41d8cd98f00b204e9800998ecf8427e"), "manifest"},
		{"foreign layer", layer("mediaType", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), "foreign"},
		{"layer from elsewhere", layer("urls", []string{"http://169.254.169.254/"}), "foreign"},
		{"layer of another type", layer("mediaType", "application/vnd.cncf.helm.chart.content.v1.tar+gzip"), "unknown type"},
		{"layer compressed by xz", func(t *testing.T, m *madeImage) {
			var out bytes.Buffer
			w, err := NewWriter(&out, XZ)
			must(t, err)
			_, err = w.Write(good)
			must(t, err)
			must(t, w.Close())
			m.layers = [][]byte{out.Bytes()}
			m.seal(t)
		}, "compressed by xz"},
		{"layer that is no archive", packed([]byte(strings.Repeat("no archive ", 100))), "bad archive"},
		{"layer that is next to nothing, blown up", bomb, "200 times"},
		{"path out of the tree", packed(archive(t, reg("usr/../../out"))), "leads out"},
		{"link out of the tree", packed(archive(t, reg("usr/x"), &tar.Header{Typeflag: tar.TypeLink, Name: "y", Linkname: "../../../../etc/passwd"})), "leads out"},
		{"link to a file of another layer", packed(archive(t, &tar.Header{Typeflag: tar.TypeLink, Name: "y", Linkname: "etc/passwd"})), "does not exist"},
		{"whiteout of the parent", packed(archive(t, reg("usr/.wh..."))), "whiteout"},
		{"whiteout of nothing", packed(archive(t, reg("usr/.wh."))), "whiteout"},
		{"500", answer("/blobs/", status(http.StatusInternalServerError)), "code 500"},
		{"401", answer("/manifests/", status(http.StatusUnauthorized)), "login"},
		{"404", answer("/manifests/", status(http.StatusNotFound)), "no such image"},
		{"login that goes on", answer("/v2/", func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/v2/token") {
				endless(w, r)
				return
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/v2/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		}), ""},
		{"redirects in a circle", answer("/blobs/", to("SELF?again")), "redirected more than 20 times"},
		{"redirect to a file", answer("/blobs/", to("file:///etc/passwd")), "redirected to file:///etc/passwd"},
		{"redirect to where nothing is encrypted", answer("/blobs/", to("http://192.0.2.1/x")), "would not be encrypted"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := newImage(t, good)
			tt.change(t, m)
			root := poolDir(t)
			err := pullOCI(t, root, m.serve(t)+"/some/image:1", func(r *Request) { r.StallTimeout = 5 * time.Second })
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.ContainsAny(err.Error(), "\n\x1b") || len(err.Error()) > 900 {
				t.Errorf("got %q, want one line with %q", fmt.Sprint(err), tt.want)
			}
			nothingIn(t, root)
		})
	}
}

// TestOCIDigestPin gets what the digest says, or nothing.
func TestOCIDigestPin(t *testing.T) {
	needRoot(t)
	m := newImage(t, archive(t, reg("usr/x")))
	data, err := json.Marshal(m.manifest)
	must(t, err)
	m.blobs[digestOf(data)] = data
	m.blobs[digestOf(nil)] = data // the registry lies
	host := m.serve(t)
	root := poolDir(t)
	must(t, pullOCI(t, root, host+"/a:ignored@"+digestOf(data), nil))
	err = pullOCI(t, root, host+"/a@"+digestOf(nil), func(r *Request) { r.Local = "other" })
	if err == nil || !strings.Contains(err.Error(), "the digest of its manifest is") {
		t.Errorf("got %v, want an error about the digest", err)
	}
}

// TestOCILayerCutOff breaks each connection in the middle: the layer goes on from there.
// When the server is gone for good, what is whole stays.
func TestOCILayerCutOff(t *testing.T) {
	needRoot(t)
	content := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	one, two := archive(t, reg("usr/x")), archiveOf(t, "big", content)
	m := newImage(t, one, two)
	big := digestOf(m.layers[1])
	var gone atomic.Bool
	m.answer = only(big, func(w http.ResponseWriter, r *http.Request) {
		if gone.Load() {
			// Lets the other layer come first.
			time.Sleep(300 * time.Millisecond)
		}
		start := 0
		_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &start)
		rest := m.layers[1][start:]
		w.Header().Set("Content-Length", fmt.Sprint(len(rest)))
		if start > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(m.layers[1])-1, len(m.layers[1])))
			w.WriteHeader(http.StatusPartialContent)
		}
		part := rest[:min(len(rest), 200<<10)]
		if gone.Load() && start > 0 {
			part = nil
		}
		_, _ = w.Write(part)
	})
	host := m.serve(t)
	root := poolDir(t)
	gone.Store(true)
	err := pullOCI(t, root, host+"/a:1", nil)
	if err == nil || !strings.Contains(err.Error(), "broken off") {
		t.Errorf("got %v, want an error about the connection", err)
	}
	left, _ := os.ReadDir(root)
	if len(left) != 1 || left[0].Name() != image.LayerName(digestOf(m.layers[0])) {
		t.Errorf("left: %v, want the layer that was whole", left)
	}
	gone.Store(false)
	must(t, pullOCI(t, root, host+"/a:1", nil))
	got, err := os.ReadFile(filepath.Join(root, image.LayerName(big), "big"))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

func archiveOf(t *testing.T, name string, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}))
	_, err := w.Write(content)
	must(t, err)
	must(t, w.Close())
	return out.Bytes()
}

// TestOCICancel ends a pull: nothing is left, not even what was whole.
func TestOCICancel(t *testing.T) {
	needRoot(t)
	m := newImage(t, archive(t, reg("usr/x")), archive(t, reg("usr/y")))
	ctx, cancel := context.WithCancel(context.Background())
	root := poolDir(t)
	m.answer = only(digestOf(m.layers[1]), func(_ http.ResponseWriter, r *http.Request) {
		for i := 0; i < 500; i++ { // until the other layer is there
			if list, _ := filepath.Glob(filepath.Join(root, image.LayerPrefix+"*")); len(list) > 0 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
		<-r.Context().Done()
	})
	req := Request{Kind: PullOCI, Local: "img", Remote: m.serve(t) + "/a:1", ImageRoot: root, SearchPath: []string{root}, LockDir: t.TempDir(), NoSync: true}
	if err := Run(ctx, req); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	nothingIn(t, root)
}

// TestOCIOddLayers pulls what is strange and allowed.
func TestOCIOddLayers(t *testing.T) {
	needRoot(t)
	whole := func(names ...*tar.Header) []byte { return archive(t, names...) }
	dir := func(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }
	empty := whole()
	for _, tt := range []struct {
		name   string
		layers [][]byte
		want   string
	}{
		{"the same layer twice", [][]byte{whole(reg("a"), reg("b")), whole(reg(".wh.a")), whole(reg("a"), reg("b")), whole(reg(".wh.b"))}, "[a]"},
		{"empty layers", [][]byte{empty, whole(reg("a")), empty}, "[a]"},
		{"all below hidden", [][]byte{whole(reg("a")), whole(reg("b")), whole(reg(".wh..wh..opq"), reg("c")), whole(reg("d"))}, "[c d]"},
		{"taken away and made anew", [][]byte{whole(dir("d"), reg("d/old"), reg("f")), whole(reg(".wh.d"), dir("d"), reg("d/new"), reg(".wh.f"), reg("f"))}, "[d/new f]"},
		{"made and taken away below", [][]byte{whole(dir("d"), reg("d/old")), whole(dir("d"), reg("d/new"), reg(".wh.d"))}, "[d/new]"},
		{"what aufs left", [][]byte{whole(reg("a"), reg(".wh..wh.aufs"), dir(".wh..wh.plnk"), reg(".wh..wh.plnk/1.2"))}, "[a]"},
		{"attributes of overlayfs", [][]byte{whole(dir("secret"), reg("secret/x")), whole(
			&tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/secret", "SCHILY.xattr.trusted.overlay.opaque": "y"}},
			&tar.Header{Typeflag: tar.TypeDir, Name: "secret", Mode: 0o755, PAXRecords: map[string]string{"LIBARCHIVE.xattr.trusted%2eoverlay%2eopaque": "eQ=="}})}, "[secret/x]"},
		{"written through a link", [][]byte{whole(&tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/e"}, dir("e"), reg("l/x"))}, "[e/x]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newImage(t, tt.layers...)
			root := poolDir(t)
			must(t, pullOCI(t, root, m.serve(t)+"/a", nil))
			if got := fmt.Sprint(filesBelow(t, mountStack(t, filepath.Join(root, "img.mstack")))); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// TestHostileOCIArchives takes images from files that must fail.
func TestHostileOCIArchives(t *testing.T) {
	needRoot(t)
	layer := archive(t, reg("usr/x"))
	config := fmt.Appendf(nil, `{"os":"linux","architecture":%q,"rootfs":{"diff_ids":[%q]}}`, runtime.GOARCH, digestOf(layer))
	id := strings.TrimPrefix(digestOf(config), "sha256:")
	saved := func(configName, layerName string) []byte {
		return fmt.Appendf(nil, `[{"Config":%q,"RepoTags":["a:1"],"Layers":[%q]}]`, configName, layerName)
	}
	type file struct {
		name string
		data []byte
		link string
	}
	pack := func(files ...file) []byte {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		for _, f := range files {
			h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.data))}
			if f.link != "" {
				h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
			}
			must(t, w.WriteHeader(h))
			_, err := w.Write(f.data)
			must(t, err)
		}
		must(t, w.Close())
		return out.Bytes()
	}
	good := pack(file{name: id + ".json", data: config}, file{name: "x/layer.tar", link: "../y/layer.tar"}, file{name: "y/layer.tar", data: layer}, file{name: "manifest.json", data: saved(id+".json", "x/layer.tar")})
	for _, tt := range []struct {
		name string
		data []byte
		want string // "" works
	}{
		{"good, with a link", good, ""},
		{"good and compressed", gz(t, good), ""},
		{"cut off in its index", good[:len(good)-2000], "unexpected EOF"},
		{"cut off in a file", good[:2600], "ends within"},
		{"compressed and cut off", gz(t, good)[:200], "ends too early"},
		{"rubbish", []byte("rubbish"), "archive"},
		{"empty", nil, "neither"},
		{"layer missing", pack(file{name: id + ".json", data: config}, file{name: "manifest.json", data: saved(id+".json", "x/layer.tar")}), "layer 1"},
		{"configuration from the host", pack(file{name: "manifest.json", data: saved("../../../../../etc/passwd", "x")}), "etc/passwd"},
		{"configuration that is another", pack(file{name: strings.Repeat("0", 64) + ".json", data: config}, file{name: "l", data: layer}, file{name: "manifest.json", data: saved(strings.Repeat("0", 64)+".json", "l")}), "digest of its configuration"},
		{"layer that is another", pack(file{name: id + ".json", data: config}, file{name: "l", data: archive(t, reg("usr/y"))}, file{name: "manifest.json", data: saved(id+".json", "l")}), "the digest of its archive"},
		{"links in a circle", pack(file{name: id + ".json", data: config}, file{name: "l", link: "m"}, file{name: "m", link: "l"}, file{name: "manifest.json", data: saved(id+".json", "l")}), "lead nowhere"},
		{"no images", pack(file{name: "manifest.json", data: []byte("[]")}), "0 images"},
		{"several images", pack(file{name: "manifest.json", data: []byte(`[{"RepoTags":["a:1"]},{"RepoTags":["b:1"]}]`)}), "a:1, b:1"},
		{"nested JSON", pack(file{name: "manifest.json", data: bytes.Repeat([]byte("["), 1<<20)}), "manifest.json"},
		{"manifest of five megabytes", pack(file{name: "manifest.json", data: bytes.Repeat([]byte(" "), 5<<20)}), "is larger than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.tar")
			must(t, os.WriteFile(path, tt.data, 0o600))
			root := poolDir(t)
			err := pullOCI(t, root, "docker-archive:"+path, nil)
			if tt.want == "" {
				must(t, err)
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q", err, tt.want)
			}
			nothingIn(t, root)
		})
	}
	t.Run("layout with links out of it", func(t *testing.T) {
		dir := t.TempDir()
		must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "index.json")))
		root := poolDir(t)
		err := pullOCI(t, root, "oci:"+dir, nil)
		if err == nil || !strings.Contains(err.Error(), "escapes") {
			t.Errorf("got %v, want an error about the link", err)
		}
		nothingIn(t, root)
	})
	t.Run("no such directory", func(t *testing.T) {
		root := poolDir(t)
		if err := pullOCI(t, root, "oci:/nonexistent", nil); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v, want ErrNotExist", err)
		}
		nothingIn(t, root)
	})
	t.Run("a FIFO", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "fifo")
		must(t, unix.Mkfifo(path, 0o600))
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		defer func() { _ = f.Close() }()
		if err := pullOCI(t, poolDir(t), "docker-archive:"+path, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("got %v, want ErrInvalid", err)
		}
	})
}
