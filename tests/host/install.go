package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// layers are the product's layers that this process has made, one per tree.
// The files are the same for all hosts of a process, and removed with it.
var layers struct {
	mu   sync.Mutex
	dir  map[string]string
	hold []*reaper // kept so that their pipes stay open
}

// productLayer is an overlay layer with the product installed over a base by
// `make install`, as a packager would with DESTDIR.
func productLayer(ctx context.Context, r recipe, base string) (string, error) {
	layers.mu.Lock()
	defer layers.mu.Unlock()
	if dir := layers.dir[base]; dir != "" {
		return dir, nil
	}
	top, err := sourceTree()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(workDir(), fmt.Sprintf("product-%d-%s-%s", os.Getpid(), r.kind, r.suite))
	hold, err := startReaper(reapSpec{Dir: dir})
	if err != nil {
		return "", err
	}
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return "", errors.Join(err, hold.finish())
		}
	}
	script := `mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
exec make -s -C "$3" install DESTDIR="$2/root" PREFIX=/usr BIN="$4"`
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "install", base, dir, top, programs(top))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("make install: %w\n%s", err, out), hold.finish())
	}
	if layers.dir == nil {
		layers.dir = map[string]string{}
	}
	upper := filepath.Join(dir, "upper")
	layers.dir[base], layers.hold = upper, append(layers.hold, hold)
	return upper, nil
}

// sourceTree is the top of the source tree that this file was built from.
func sourceTree() (string, error) {
	if top := os.Getenv("MACHINED_SOURCE"); top != "" {
		return top, nil
	}
	_, file, _, ok := runtime.Caller(0)
	if !ok || !strings.HasSuffix(file, "/tests/host/install.go") || !filepath.IsAbs(file) {
		return "", fmt.Errorf("find the source tree: built from %q; set MACHINED_SOURCE", file)
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(file))), nil
}

// InstallTree installs the product into a tree of the host, as into the host itself.
func (h *Host) InstallTree(t testing.TB, tree string) {
	t.Helper()
	top, err := sourceTree()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("make", "-s", "-C", top, "install", "DESTDIR="+h.Path(tree), "PREFIX=/usr", "BIN="+programs(top)).CombinedOutput()
	if err != nil {
		t.Fatalf("install the product into %q: %v: %s", tree, err, out)
	}
}

// programs is the directory of the programs to test, of a source tree or elsewhere.
func programs(top string) string {
	if bin := os.Getenv("MACHINED_TEST_BIN"); bin != "" { // of another build than the tree's
		return bin
	}
	return filepath.Join(top, "bin")
}
