package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	// MetadataMax bounds a manifest, an index and a configuration, in bytes.
	MetadataMax = 4 << 20
	// MaxLayers is how many layers overlayfs stacks.
	MaxLayers = 500
	// layerMax bounds the size that a manifest may say of a layer, in bytes.
	layerMax = 1 << 40
	// maxManifests bounds an index.
	maxManifests = 1000
)

// Accept are the types of what a registry may answer, as HTTP has them.
var Accept = strings.Join([]string{
	string(types.OCIImageIndex), string(types.OCIManifestSchema1), string(types.DockerManifestList), string(types.DockerManifestSchema2),
}, ", ")

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrImage, fmt.Errorf(format, args...))
}

// decode reads one JSON value, and nothing after it.
func decode(what string, data []byte, into any) error {
	if len(data) > MetadataMax {
		return bad("%s of more than %d bytes", what, MetadataMax)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(into); err != nil {
		return bad("its %s: %w", what, err)
	}
	if dec.More() {
		return bad("its %s has something after its end", what)
	}
	return nil
}

// Kind tells an index from a manifest: by the type that it says of itself, else by
// what it was called, else by what it has.
func Kind(data []byte, called types.MediaType) (types.MediaType, error) {
	var head struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     types.MediaType `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Layers        json.RawMessage `json:"layers"`
	}
	if err := decode("manifest", data, &head); err != nil {
		return "", err
	}
	if head.SchemaVersion != 2 {
		return "", bad("its manifest is of version %d, not 2", head.SchemaVersion)
	}
	if head.Manifests != nil && head.Layers != nil {
		return "", bad("its manifest is an index too")
	}
	kind := head.MediaType
	if kind == "" {
		kind = called
	}
	switch {
	case kind.IsIndex() || kind.IsImage() && kind != types.DockerManifestSchema1 && kind != types.DockerManifestSchema1Signed:
	case head.MediaType == "" && head.Manifests != nil:
		kind = types.OCIImageIndex
	case head.MediaType == "" && head.Layers != nil:
		kind = types.OCIManifestSchema1
	default:
		return "", bad("its manifest is of unknown type %.80q", string(kind))
	}
	if kind.IsIndex() != (head.Manifests != nil) || kind.IsImage() != (head.Layers != nil) {
		return "", bad("its manifest is not what its type %s says", kind)
	}
	return kind, nil
}

// Platform is what an image is made for.
type Platform = v1.Platform

// Pick chooses the entry of an index that fits a platform and, where tag is not
// empty, is called so. Entries without a platform fit any.
func Pick(data []byte, tag string, platform Platform) (v1.Descriptor, error) {
	var index v1.IndexManifest
	if err := decode("index", data, &index); err != nil {
		return v1.Descriptor{}, err
	}
	if len(index.Manifests) > maxManifests {
		return v1.Descriptor{}, bad("its index has more than %d entries", maxManifests)
	}
	var loose *v1.Descriptor
	for i, m := range index.Manifests {
		switch {
		case tag != "" && m.Annotations[refName] != tag && m.Annotations[dockerName] != tag:
			continue
		case !m.MediaType.IsIndex() && !m.MediaType.IsImage():
			continue
		case m.Platform == nil || m.Platform.OS == "" && m.Platform.Architecture == "":
			if loose == nil {
				loose = &index.Manifests[i]
			}
			continue
		case m.Platform.OS != platform.OS || m.Platform.Architecture != platform.Architecture:
			continue
		}
		return m, nil
	}
	if loose != nil {
		return *loose, nil
	}
	if tag != "" {
		return v1.Descriptor{}, bad("it has no image %.80q for %s/%s", tag, platform.OS, platform.Architecture)
	}
	return v1.Descriptor{}, bad("it has no image for %s/%s", platform.OS, platform.Architecture)
}

// Annotations that carry an image's name in an index (OCI annotations.md).
const (
	refName    = "org.opencontainers.image.ref.name"
	dockerName = "io.containerd.image.name"
)

// Manifest is a parsed manifest.
type Manifest struct {
	Config v1.Descriptor
	Layers []v1.Descriptor
}

// ParseManifest reads the manifest of one image.
func ParseManifest(data []byte) (Manifest, error) {
	var m v1.Manifest
	if err := decode("manifest", data, &m); err != nil {
		return Manifest{}, err
	}
	if len(m.Layers) == 0 {
		return Manifest{}, bad("it has no layers")
	}
	if len(m.Layers) > 2*MaxLayers { // some may be the same
		return Manifest{}, bad("it has %d layers, more than %d", len(m.Layers), MaxLayers)
	}
	if err := checkBlob("configuration", m.Config, MetadataMax); err != nil {
		return Manifest{}, err
	}
	for i, l := range m.Layers {
		what := fmt.Sprintf("layer %d", i+1)
		switch {
		case l.MediaType == types.DockerForeignLayer || !l.MediaType.IsDistributable() || len(l.URLs) > 0:
			return Manifest{}, bad("%s is foreign: it has to be fetched from elsewhere", what)
		case !layerType(l.MediaType):
			return Manifest{}, bad("%s is of unknown type %.80q", what, string(l.MediaType))
		}
		if err := checkBlob(what, l, layerMax); err != nil {
			return Manifest{}, err
		}
	}
	return Manifest{Config: m.Config, Layers: m.Layers}, nil
}

func layerType(t types.MediaType) bool {
	return t.IsLayer() || t == "application/vnd.docker.image.rootfs.diff.tar.zstd" || t == "application/vnd.docker.image.rootfs.diff.tar"
}

// CheckDescriptor returns an error for a descriptor whose digest or size cannot be.
func CheckDescriptor(what string, d v1.Descriptor) error { return checkBlob(what, d, MetadataMax) }

func checkBlob(what string, d v1.Descriptor, most int64) error {
	switch {
	case !digestRule.MatchString(d.Digest.String()):
		return bad("%s has no SHA256 digest", what)
	case d.Size < 0:
		return bad("%s has a negative size", what)
	case d.Size > most:
		return bad("%s of %d bytes is larger than %d", what, d.Size, most)
	}
	return nil
}

// ParseConfig reads the configuration of an image with that many layers.
func ParseConfig(data []byte, layers int) (*v1.ConfigFile, error) {
	var c v1.ConfigFile
	if err := decode("configuration", data, &c); err != nil {
		return nil, err
	}
	if n := len(c.RootFS.DiffIDs); n != layers {
		return nil, bad("its configuration speaks of %d layers, its manifest of %d", n, layers)
	}
	for i, id := range c.RootFS.DiffIDs {
		if !digestRule.MatchString(id.String()) {
			return nil, bad("layer %d has no SHA256 digest in the configuration", i+1)
		}
	}
	return &c, nil
}

// CheckPlatform says whether an image made for another platform was asked for.
func CheckPlatform(c *v1.ConfigFile, platform Platform) error {
	if c.OS != "" && c.OS != platform.OS || c.Architecture != "" && c.Architecture != platform.Architecture {
		return bad("it is made for %.20s/%.20s, not for %s/%s", c.OS, c.Architecture, platform.OS, platform.Architecture)
	}
	return nil
}
