package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"machined/image"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sync/errgroup"
)

// Prefixes of references to images that are on this host already.
const (
	ociLayoutPrefix     = "oci:"            // oci:/DIRECTORY[:TAG], an OCI image layout
	dockerArchivePrefix = "docker-archive:" // docker-archive:/FILE, from docker save
)

// LayerPrefix starts the names of layers in the pool that are kept for other
// images; the hexadecimal digest follows.
const LayerPrefix = image.LayerPrefix

// maxLayers and maxLayerFetches bound an image's layers, and how many of them are
// fetched at once.
const (
	maxLayers       = 512
	maxLayerFetches = 4
)

// CheckReference says whether s names an OCI image: a reference to a registry, or
// one of the local forms with an absolute path.
func CheckReference(s string) error {
	if path, _, ok := localReference(s); ok {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%w: OCI reference %q has no absolute path", ErrInvalid, s)
		}
		return nil
	}
	if _, err := name.ParseReference(s); err != nil {
		return fmt.Errorf("%w: OCI reference: %w", ErrInvalid, err)
	}
	return nil
}

// localReference takes a reference to an image on this host apart.
func localReference(s string) (path, tag string, ok bool) {
	if path, ok := strings.CutPrefix(s, dockerArchivePrefix); ok {
		return path, "", true
	}
	path, ok = strings.CutPrefix(s, ociLayoutPrefix)
	if !ok {
		return "", "", false
	}
	if i := strings.LastIndexByte(path, ':'); i > strings.LastIndexByte(path, '/') {
		path, tag = path[:i], path[i+1:]
	}
	return path, tag, true
}

// ReferencePath is the file or directory that a local reference needs, or "".
func ReferencePath(s string) string {
	path, _, _ := localReference(s)
	return path
}

// pullOCI makes a tree out of an OCI image, and settings that run it.
func (e *engine) pullOCI(ctx context.Context) error {
	if err := CheckReference(e.Remote); err != nil {
		return err
	}
	if e.Local == "" {
		return fmt.Errorf("%w: an OCI image needs a local name", ErrInvalid)
	}
	e.logf(Info, "Pulling '%s', saving as '%s'.", e.Remote, e.Local)
	if err := e.checkFree(ctx); err != nil {
		return err
	}
	img, err := e.findOCI(ctx)
	if err != nil {
		return fmt.Errorf("pull %s: %w", e.Remote, err)
	}
	layers, err := img.Layers()
	if err != nil {
		return fmt.Errorf("pull %s: %w", e.Remote, err)
	}
	if len(layers) > maxLayers {
		return fmt.Errorf("pull %s: %w: more than %d layers", e.Remote, ErrArchive, maxLayers)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return fmt.Errorf("pull %s: %w", e.Remote, err)
	}
	b, err := e.begin(true)
	if err != nil {
		return err
	}
	defer b.drop()
	if err := e.unpackLayers(ctx, layers, b); err != nil {
		return fmt.Errorf("pull %s: %w", e.Remote, err)
	}
	// The spawner wants to see an OS tree.
	for _, dir := range []string{"usr", "etc"} {
		if err := os.Mkdir(filepath.Join(b.path, dir), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	settings, lost := ociSettings(config.Config)
	for _, what := range lost {
		e.logf(Warning, "The %s has a line break, which a settings file cannot hold: left out.", what)
	}
	return e.publish(ctx, b, true, []sideFile{{suffix: ".nspawn", data: settings}})
}

// findOCI finds the image of this host's architecture.
func (e *engine) findOCI(ctx context.Context) (v1.Image, error) {
	platform := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	path, tag, local := localReference(e.Remote)
	switch {
	case local && strings.HasPrefix(e.Remote, dockerArchivePrefix):
		return tarball.ImageFromPath(path, nil)
	case local:
		index, err := layout.ImageIndexFromPath(path)
		if err != nil {
			return nil, err
		}
		return pickImage(index, tag, platform, 0)
	}
	ref, err := name.ParseReference(e.Remote)
	if err != nil {
		return nil, err
	}
	return remote.Image(ref, remote.WithContext(ctx), remote.WithPlatform(platform), remote.WithUserAgent("machine-importd"),
		remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithTransport(newClient(e.StallTimeout).http.Transport))
}

// refNameAnnotation carries the tag in an image layout (OCI annotations.md).
const refNameAnnotation = "org.opencontainers.image.ref.name"

// maxIndexDepth bounds how deep an index may nest indexes.
const maxIndexDepth = 4

func pickImage(index v1.ImageIndex, tag string, platform v1.Platform, depth int) (v1.Image, error) {
	if depth > maxIndexDepth {
		return nil, fmt.Errorf("%w: its index is nested too deeply", ErrArchive)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	for _, m := range manifest.Manifests {
		if tag != "" && m.Annotations[refNameAnnotation] != tag || m.Platform != nil && m.Platform.OS != "" && !m.Platform.Satisfies(platform) {
			continue
		}
		if m.MediaType.IsIndex() {
			inner, err := index.ImageIndex(m.Digest)
			if err != nil {
				return nil, err
			}
			return pickImage(inner, "", platform, depth+1)
		}
		if m.MediaType.IsImage() {
			return index.Image(m.Digest)
		}
	}
	return nil, fmt.Errorf("%w: it has no image %q for %s/%s", ErrArchive, tag, platform.OS, platform.Architecture)
}

// unpackLayers fetches layers at the same time and puts them on each other in
// their order, each as soon as it is there.
func (e *engine) unpackLayers(ctx context.Context, layers []v1.Layer, b *building) error {
	total := int64(0)
	for _, l := range layers {
		if size, err := l.Size(); err == nil {
			total += size
		}
	}
	var done atomic.Int64
	var mu sync.Mutex // progress is not for many goroutines
	tell := func(n int64) {
		now := done.Add(n)
		mu.Lock()
		defer mu.Unlock()
		if percent, fresh := e.progress(now, total); fresh && percent%10 == 0 {
			e.logf(Info, "Got %d%% of %s.", percent, e.Remote)
		}
	}
	_, _, local := localReference(e.Remote)
	group, ctx := errgroup.WithContext(ctx)
	slots := make(chan struct{}, maxLayerFetches)
	ready := make([]chan *os.File, len(layers))
	for i := range ready {
		ready[i] = make(chan *os.File, 1)
	}
	defer func() {
		for _, c := range ready {
			select {
			case f := <-c:
				if f != nil {
					_ = f.Close()
				}
			default:
			}
		}
	}()
	if !local {
		group.Go(func() error {
			for i, l := range layers {
				select {
				case slots <- struct{}{}:
				case <-ctx.Done():
					return ctx.Err()
				}
				group.Go(func() error {
					defer func() { <-slots }()
					f, err := e.fetchLayer(ctx, l, tell)
					if err == nil {
						ready[i] <- f
					}
					return err
				})
			}
			return nil
		})
	}
	group.Go(func() error {
		for i, l := range layers {
			if err := e.unpackLayer(ctx, l, ready[i], local, b, tell); err != nil {
				return fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
			}
		}
		return nil
	})
	return group.Wait()
}

func (e *engine) unpackLayer(ctx context.Context, l v1.Layer, ready <-chan *os.File, local bool, b *building, tell func(int64)) error {
	var source io.ReadCloser
	if local {
		r, err := l.Uncompressed()
		if err != nil {
			return err
		}
		source = r
		if size, err := l.Size(); err == nil {
			defer tell(size)
		}
	} else {
		select {
		case f := <-ready:
			source = f
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer func() { _ = source.Close() }()
	in, _, err := NewReader(source)
	if err != nil {
		return streamError(err)
	}
	defer func() { _ = in.Close() }()
	return applyLayer(ctx, in, b.f, e.writer(b))
}

// fetchLayer downloads a layer, or takes the one that is kept. The library
// checks its digest.
func (e *engine) fetchLayer(ctx context.Context, l v1.Layer, tell func(int64)) (*os.File, error) {
	digest, err := l.Digest()
	if err != nil {
		return nil, err
	}
	size, err := l.Size()
	if err != nil {
		return nil, err
	}
	kept := filepath.Join(e.ImageRoot, LayerPrefix+digest.Algorithm+":"+digest.Hex)
	if f, err := openKept(kept, size, digest); err == nil {
		tell(size)
		return f, nil
	}
	body, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	temp := filepath.Join(e.ImageRoot, image.TempName("layer"))
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*os.File, error) {
		_ = os.Remove(temp)
		_ = f.Close()
		return nil, err
	}
	if err := image.HoldTemp(f); err != nil {
		return fail(err)
	}
	last := int64(0)
	in := &counter{r: io.LimitReader(body, size+1), tell: func(n int64) { tell(n - last); last = n }}
	n, err := io.Copy(f, contextReader{ctx, in})
	if err != nil {
		return fail(err)
	}
	if n != size {
		return fail(fmt.Errorf("%w: layer %s has %d bytes, its manifest says %d", ErrVerification, digest, n, size))
	}
	if e.KeepDownload {
		if err := f.Sync(); err != nil {
			return fail(err)
		}
		err = os.Rename(temp, kept)
	} else {
		err = os.Remove(temp)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fail(err)
	}
	return f, nil
}

// openKept opens a layer that is kept, if it is still what its name says.
func openKept(path string, size int64, digest v1.Hash) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	got, n, err := v1.SHA256(f)
	if err == nil && (n != size || got != digest) {
		err = fmt.Errorf("%w: kept layer %q", ErrVerification, path)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// contextReader ends reading when its context does.
type contextReader struct {
	ctx context.Context //nolint:containedctx // lives as long as one copy
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
