package transfer

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"machined/image"
	"machined/transfer/oci"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// exportOCI writes an image as an archive of an OCI image layout, which docker load
// understands too. A mount stack keeps its layers; a tree is one layer.
func (e *engine) exportOCI(ctx context.Context, img image.Image, format Format) error {
	if format != Uncompressed && format != Gzip && format != Zstd {
		return fmt.Errorf("%w: layers are compressed by gzip or zstd", ErrInvalid)
	}
	trees := []string{img.Path}
	if img.Type == image.TypeMStack {
		var err error
		if trees, err = image.StackTrees(img.Path); err != nil {
			return err
		}
		slices.Reverse(trees)
	}
	if len(trees) == 0 {
		return fmt.Errorf("%w: it has no layers", ErrInvalid)
	}
	out := tar.NewWriter(e.stream(ctx))
	written := map[string]bool{}
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	var ids []v1.Hash
	for i, tree := range trees {
		e.logf(Info, "Packing layer %d of %d.", i+1, len(trees))
		d, id, err := e.exportLayer(ctx, tree, format, out, written)
		if err != nil {
			return fmt.Errorf("layer %d of %d: %w", i+1, len(trees), err)
		}
		manifest.Layers, ids = append(manifest.Layers, d), append(ids, id)
		fraction := float64(i+1) / float64(len(trees))
		e.Progress(fraction)
	}
	config, err := e.exportConfig(img, ids)
	if err != nil {
		return err
	}
	if manifest.Config, err = writeBlob(out, written, types.OCIConfigJSON, config); err != nil {
		return err
	}
	data, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	top, err := writeBlob(out, written, types.OCIManifestSchema1, data)
	if err != nil {
		return err
	}
	top.Platform = &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	index, err := oci.MarshalIndex(top, e.Local)
	if err != nil {
		return err
	}
	saved, err := oci.MarshalSaved(manifest, e.Local)
	if err != nil {
		return err
	}
	for _, file := range []struct {
		name string
		data []byte
	}{{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {"index.json", index}, {"manifest.json", saved}} {
		if err := writeEntry(out, file.name, file.data); err != nil {
			return err
		}
	}
	return out.Close()
}

// exportLayer packs one tree. Its size has to be known before it is written, so that
// it is packed into a file without a name first.
func (e *engine) exportLayer(ctx context.Context, tree string, format Format, out *tar.Writer, written map[string]bool) (v1.Descriptor, v1.Hash, error) {
	fail := func(err error) (v1.Descriptor, v1.Hash, error) { return v1.Descriptor{}, v1.Hash{}, err }
	src, err := os.Open(tree)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = src.Close() }()
	temp := filepath.Join(e.ImageRoot, image.TempName("layer"))
	packed, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = packed.Close() }()
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	sum := newDigester(nil)
	w, err := NewWriter(io.MultiWriter(packed, sum), format)
	if err != nil {
		return fail(err)
	}
	plain := newDigester(nil)
	err = writeTar(ctx, src, io.MultiWriter(w, plain), func(int64) {}, true)
	if closeErr := w.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		_, err = packed.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fail(err)
	}
	d := v1.Descriptor{Size: sum.n, MediaType: layerTypes[format]}
	if d.Digest, err = v1.NewHash(sum.digest()); err != nil {
		return fail(err)
	}
	id, err := v1.NewHash(plain.digest())
	if err != nil || written[d.Digest.Hex] {
		return d, id, err
	}
	written[d.Digest.Hex] = true
	if err := out.WriteHeader(entryHeader("blobs/sha256/"+d.Digest.Hex, d.Size)); err != nil {
		return fail(err)
	}
	_, err = io.Copy(out, contextReader{ctx, packed})
	return d, id, err
}

var layerTypes = map[Format]types.MediaType{Uncompressed: types.OCIUncompressedLayer, Gzip: types.OCILayer, Zstd: types.OCILayerZStd}

func entryHeader(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)}
}

func writeEntry(out *tar.Writer, name string, data []byte) error {
	if err := out.WriteHeader(entryHeader(name, int64(len(data)))); err != nil {
		return err
	}
	_, err := out.Write(data)
	return err
}

// writeBlob writes a small part, unless it is there already.
func writeBlob(out *tar.Writer, written map[string]bool, kind types.MediaType, data []byte) (v1.Descriptor, error) {
	sum := newDigester(nil)
	_, _ = sum.Write(data)
	d := v1.Descriptor{MediaType: kind, Size: int64(len(data))}
	var err error
	if d.Digest, err = v1.NewHash(sum.digest()); err != nil || written[d.Digest.Hex] {
		return d, err
	}
	written[d.Digest.Hex] = true
	return d, writeEntry(out, "blobs/sha256/"+d.Digest.Hex, data)
}

// exportConfig is the configuration that the image came with, for the layers that it
// has now. An image without one boots.
func (e *engine) exportConfig(img image.Image, ids []v1.Hash) ([]byte, error) {
	path := filepath.Join(filepath.Dir(img.Path), img.Name+".oci-config")
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return oci.NewConfig(runtime.GOARCH, img.Type != image.TypeMStack, ids)
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, oci.MetadataMax+1))
	if err != nil {
		return nil, err
	}
	config, err := oci.Relayer(data, ids)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return config, nil
}
