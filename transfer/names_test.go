package transfer

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDownloadName names hidden downloads by ETags that servers send: each is a file name,
// and known again where it can be.
func TestDownloadName(t *testing.T) {
	root := t.TempDir()
	const remote = "http://example.org/some/image.tar.xz"
	long := "http://example.org/" + strings.Repeat("long/", 40) + "image.tar.xz"
	for _, test := range []struct {
		remote, etag string
		known        bool
	}{
		{remote, `"abc"`, true},
		{remote, `W/"abc/../..\"`, true},
		{remote, `"` + strings.Repeat("e", 100) + `"`, true},
		{long, `"abc"`, true},
		{long, `"` + strings.Repeat("e", 300) + `"`, false},
		{remote, strings.Repeat("/", 30000), false},
		{remote, "*", false},
		{remote, "", false},
	} {
		name := downloadName(root, ".tar-", test.remote, test.etag, "")
		if len(name)+len(longestSide) > 255 || strings.ContainsRune(name, '/') {
			t.Errorf("%.40q: name %q", test.etag, name)
			continue
		}
		must(t, os.Mkdir(filepath.Join(root, name), 0o755))
		if got := slices.Contains(knownETags(root, ".tar-", test.remote, ""), test.etag); got != test.known {
			t.Errorf("%.40q: known %v, want %v", test.etag, got, test.known)
		}
		must(t, os.Remove(filepath.Join(root, name)))
	}
}
