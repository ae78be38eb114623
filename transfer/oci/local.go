package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Source has the parts of images.
type Source interface {
	// Root is the index or manifest that the reference names, and what it is called.
	Root(ctx context.Context) ([]byte, types.MediaType, error)
	// Blob opens a part by its digest: a manifest, configuration or layer. What
	// comes is not checked.
	Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
	Close() error
}

// Layer is one layer of an image.
type Layer struct {
	// Digest names the layer: that of its bytes as they come, or of the archive
	// in it where nobody knows the other (Packed false).
	Digest string
	Packed bool
	DiffID string // of the archive
	Size   int64  // of its bytes as they come; -1 not known
	Open   func(ctx context.Context) (io.ReadCloser, error)
}

// Image is an image that was found.
type Image struct {
	Config *v1.ConfigFile
	// Raw is the configuration as it came.
	Raw    []byte
	Layers []Layer // from the bottom up
}

// maxIndexDepth bounds how deep an index may nest indexes.
const maxIndexDepth = 4

// Find finds an image in a source. Everything but the layers is fetched and checked.
func Find(ctx context.Context, src Source, ref Reference, platform Platform) (*Image, error) {
	if d, ok := src.(*dockerArchive); ok {
		return d.find(ref, platform)
	}
	data, called, err := src.Root(ctx)
	if err != nil {
		return nil, err
	}
	if ref.Digest != "" && !ref.Local() {
		if err := checkDigest("manifest", data, ref.Digest); err != nil {
			return nil, err
		}
	}
	tag := ""
	if ref.Local() {
		tag = ref.Tag
		if ref.Digest != "" {
			d := v1.Descriptor{Size: -1}
			if d.Digest, err = v1.NewHash(ref.Digest); err != nil {
				return nil, bad("its digest: %w", err)
			}
			if data, err = fetch(ctx, src, "manifest", d); err != nil {
				return nil, err
			}
			tag, called = "", ""
		}
	}
	for depth := 0; ; depth++ {
		kind, err := Kind(data, called)
		if err != nil {
			return nil, err
		}
		if kind.IsImage() {
			break
		}
		if depth == maxIndexDepth {
			return nil, bad("its index is nested too deeply")
		}
		entry, err := Pick(data, tag, platform)
		if err != nil {
			return nil, err
		}
		if err := CheckDescriptor("manifest", entry); err != nil {
			return nil, err
		}
		if data, err = fetch(ctx, src, "manifest", entry); err != nil {
			return nil, err
		}
		tag, called = "", entry.MediaType
	}
	m, err := ParseManifest(data)
	if err != nil {
		return nil, err
	}
	img := &Image{}
	if img.Raw, err = fetch(ctx, src, "configuration", m.Config); err != nil {
		return nil, err
	}
	if img.Config, err = ParseConfig(img.Raw, len(m.Layers)); err != nil {
		return nil, err
	}
	if err := CheckPlatform(img.Config, platform); err != nil {
		return nil, err
	}
	for i, d := range m.Layers {
		img.Layers = append(img.Layers, Layer{
			Digest: d.Digest.String(), Packed: true, DiffID: img.Config.RootFS.DiffIDs[i].String(), Size: d.Size,
			Open: func(ctx context.Context) (io.ReadCloser, error) { return src.Blob(ctx, d) },
		})
	}
	return img, nil
}

// fetch reads a small part and checks its digest. A size of -1 is not known.
func fetch(ctx context.Context, src Source, what string, d v1.Descriptor) ([]byte, error) {
	if d.Data != nil { // it came along
		return d.Data, checkDigest(what, d.Data, d.Digest.String())
	}
	r, err := src.Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	data, err := io.ReadAll(io.LimitReader(r, MetadataMax+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MetadataMax {
		return nil, bad("%s of more than %d bytes", what, MetadataMax)
	}
	if d.Size >= 0 && int64(len(data)) != d.Size {
		return nil, bad("%s has %d bytes instead of %d", what, len(data), d.Size)
	}
	return data, checkDigest(what, data, d.Digest.String())
}

func checkDigest(what string, data []byte, want string) error {
	sum := sha256.Sum256(data)
	if got := "sha256:" + hex.EncodeToString(sum[:]); got != want {
		return bad("the digest of its %s is %s, not %s", what, got, want)
	}
	return nil
}

// Open opens a source on this host. For an archive, f is the file, uncompressed,
// which the source takes over.
func Open(ref Reference, f *os.File) (Source, error) {
	if ref.Form == LayoutPrefix {
		root, err := os.OpenRoot(ref.Path)
		if err != nil {
			return nil, err
		}
		return layout{dirFiles{root}}, nil
	}
	t, err := indexTar(f)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	_, docker := t.entries["manifest.json"]
	_, oci := t.entries["index.json"]
	switch {
	case docker && (ref.Form == DockerArchivePrefix || !oci):
		return &dockerArchive{t}, nil
	case oci:
		return layout{t}, nil
	}
	_ = f.Close()
	return nil, bad("it is neither an image layout nor from docker save: it has no index.json and no manifest.json")
}

// layout is an OCI image layout (image-layout.md).
type layout struct{ files }

// Root is for Source.
func (l layout) Root(context.Context) ([]byte, types.MediaType, error) {
	data, err := readSmall(l.files, "index.json")
	return data, types.OCIImageIndex, err
}

// Blob is for Source.
func (l layout) Blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	r, _, err := l.open(blobName(d.Digest.String()))
	return r, err
}

// Close is for Source.
func (l layout) Close() error { return l.close() }

// dockerArchive is what docker save and podman save write.
type dockerArchive struct{ files }

// Root is for Source; such an archive has no manifest of its own.
func (d *dockerArchive) Root(context.Context) ([]byte, types.MediaType, error) {
	return nil, "", errors.ErrUnsupported
}

// Blob is for Source.
func (d *dockerArchive) Blob(context.Context, v1.Descriptor) (io.ReadCloser, error) {
	return nil, errors.ErrUnsupported
}

// Close is for Source.
func (d *dockerArchive) Close() error { return d.close() }

// savedImage is one entry of the manifest.json of docker save.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// pickSaved chooses one of the images of an archive by its name.
func pickSaved(data []byte, name string) (savedImage, error) {
	var list []savedImage
	if err := decode("manifest.json", data, &list); err != nil {
		return savedImage{}, err
	}
	if len(list) == 0 || len(list) > maxManifests {
		return savedImage{}, bad("its manifest.json has %d images", len(list))
	}
	for _, img := range list {
		if name == "" && len(list) == 1 {
			return img, nil
		}
		for _, tag := range img.RepoTags {
			if tag == name || name != "" && (strings.HasSuffix(tag, "/"+name) || strings.TrimSuffix(tag, ":latest") == name) {
				return img, nil
			}
		}
	}
	var names []string
	for _, img := range list {
		names = append(names, img.RepoTags...)
	}
	if name == "" {
		return savedImage{}, bad("it has several images, one of which must be named: %.200s", strings.Join(names, ", "))
	}
	return savedImage{}, bad("it has no image %.80q, only %.200s", name, strings.Join(names, ", "))
}

func (d *dockerArchive) find(ref Reference, platform Platform) (*Image, error) {
	data, err := readSmall(d.files, "manifest.json")
	if err != nil {
		return nil, err
	}
	saved, err := pickSaved(data, ref.Tag)
	if err != nil {
		return nil, err
	}
	if len(saved.Layers) == 0 || len(saved.Layers) > 2*MaxLayers {
		return nil, bad("it has %d layers; there must be one, and at most %d", len(saved.Layers), MaxLayers)
	}
	img := &Image{}
	if img.Raw, err = readSmall(d.files, saved.Config); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = bad("%w", err)
		}
		return nil, err
	}
	// The configuration is called by its digest.
	digest := "sha256:" + strings.TrimSuffix(path.Base(saved.Config), ".json")
	if digestRule.MatchString(digest) {
		if err := checkDigest("configuration", img.Raw, digest); err != nil {
			return nil, err
		}
	}
	if ref.Digest != "" {
		if err := checkDigest("configuration", img.Raw, ref.Digest); err != nil {
			return nil, fmt.Errorf("%w; an archive from docker save is pinned by its image ID", err)
		}
	}
	if img.Config, err = ParseConfig(img.Raw, len(saved.Layers)); err != nil {
		return nil, err
	}
	if err := CheckPlatform(img.Config, platform); err != nil {
		return nil, err
	}
	for i, name := range saved.Layers {
		r, size, err := d.open(name)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				err = bad("layer %d: %w", i+1, err)
			}
			return nil, err
		}
		_ = r.Close()
		id := img.Config.RootFS.DiffIDs[i].String()
		img.Layers = append(img.Layers, Layer{
			Digest: id, DiffID: id, Size: size,
			Open: func(context.Context) (io.ReadCloser, error) {
				r, _, err := d.open(name)
				return r, err
			},
		})
	}
	return img, nil
}
