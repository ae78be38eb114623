package overlay

import (
	"path/filepath"
	"strings"
	"testing"
)

// FuzzLayers: the list of an image's layers names directories below the pool's
// own, and nothing else.
func FuzzLayers(f *testing.F) {
	f.Add("0123456789abcdef\nfedcba9876543210\n")
	f.Add("../../../../etc/x\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		ids, err := parseLayers(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, id := range ids {
			if p := Pool("/pool").base(id); filepath.Dir(p) != Pool("/pool").base("") {
				t.Errorf("layer %q is at %q", id, p)
			}
		}
	})
}
