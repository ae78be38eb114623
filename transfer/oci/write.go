package oci

import (
	"encoding/json"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// MarshalIndex writes the index.json of a layout with one image, which is called name
// where that can be a tag.
func MarshalIndex(manifest v1.Descriptor, name string) ([]byte, error) {
	if tagRule.MatchString(name) {
		manifest.Annotations = map[string]string{refName: name}
	}
	return json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{manifest}})
}

// MarshalSaved writes the manifest.json of docker save for an image whose parts lie
// as in a layout.
func MarshalSaved(m v1.Manifest, name string) ([]byte, error) {
	saved := savedImage{Config: blobName(m.Config.Digest.String()), RepoTags: []string{}}
	if repositoryRule.MatchString(name) {
		saved.RepoTags = append(saved.RepoTags, name+":latest")
	}
	for _, l := range m.Layers {
		saved.Layers = append(saved.Layers, blobName(l.Digest.String()))
	}
	return json.Marshal([]savedImage{saved})
}

// rootFS is the part of a configuration that lists the layers.
func rootFS(ids []v1.Hash) v1.RootFS { return v1.RootFS{Type: "layers", DiffIDs: ids} }

// NewConfig is the configuration of an image that has none; one that boots runs its
// init, which ends by the signal that systemd knows.
func NewConfig(arch string, boots bool, ids []v1.Hash) ([]byte, error) {
	c := v1.ConfigFile{OS: "linux", Architecture: arch, RootFS: rootFS(ids)}
	if boots {
		c.Config.Entrypoint, c.Config.StopSignal = []string{"/sbin/init"}, "SIGRTMIN+3"
	}
	return json.Marshal(c)
}

// Relayer gives a configuration other layers. What else it says stays; the history
// goes, which speaks of the old ones.
func Relayer(data []byte, ids []v1.Hash) ([]byte, error) {
	var all map[string]json.RawMessage
	if err := decode("configuration", data, &all); err != nil {
		return nil, err
	}
	if all == nil {
		return nil, bad("its configuration is empty")
	}
	layers, err := json.Marshal(rootFS(ids))
	if err != nil {
		return nil, err
	}
	all["rootfs"] = layers
	delete(all, "history")
	return json.Marshal(all)
}
