// Package tests holds what looks at the source tree as a whole. What runs in
// booted hosts is below, in integration and bench.
package tests

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "machined"

// layer says what a package may import of this module. Patterns are paths
// without the module's name; "x/..." stands for x and all below it.
type layer struct {
	packages string
	may      []string
	noBus    bool // nor may anything it reaches link godbus
}

// layers is ARCHITECTURE.md, "Imports point one way". The first row that
// matches a package counts; each package has to match one. A row for a single
// package above the row of its kind is an exception, with its reason.
var layers = []layer{
	// What the clients share: they connect, and decode what the contracts define.
	{packages: "internal/cli", may: []string{"internal/...", "dbus", "dbus/machine1", "dbus/import1"}},
	// Test support: a bus with fakes of PID 1 and polkit on it.
	{packages: "internal/testbus", may: []string{"internal/...", "dbus"}},
	// Looks machines up by the ids that they map, for nss and varlink; all it has of the registry is its value type.
	{packages: "internal/mapped", may: []string{"internal/...", "registry"}, noBus: true},
	{packages: "internal/...", may: []string{"internal/..."}, noBus: true},

	{packages: "registry/...", may: []string{"registry/...", "internal/..."}, noBus: true},
	{packages: "image/...", may: []string{"image/...", "internal/..."}, noBus: true},
	{packages: "spawn/...", may: []string{"spawn/...", "internal/..."}, noBus: true},
	// A transfer ends as an image, under the names, locks and temporary names that the store has.
	{packages: "transfer/...", may: []string{"transfer/...", "image", "internal/..."}, noBus: true},

	{packages: "dbus/machine1", may: []string{"dbus"}},
	{packages: "dbus/import1"},
	{packages: "dbus", may: []string{"internal/..."}},
	{packages: "dbus/systemd1", may: []string{"dbus", "internal/..."}},
	{packages: "polkit", may: []string{"dbus", "internal/..."}},
	{packages: "dbus/logcontrol", may: []string{"dbus"}},
	{packages: "dbus/machine1/server", may: []string{"dbus", "dbus/logcontrol", "dbus/machine1", "polkit", "registry/...", "image/...", "internal/..."}},
	{packages: "dbus/import1/server", may: []string{"dbus", "dbus/import1", "dbus/logcontrol", "polkit", "transfer/...", "image/...", "internal/..."}},
	{packages: "nss/...", may: []string{"registry", "varlink", "internal/..."}, noBus: true},
	{packages: "varlink", may: []string{"internal/..."}, noBus: true},
	{packages: "varlink/...", may: []string{"varlink/...", "nss", "polkit", "registry", "image", "internal/..."}},
	{packages: "units/..."},

	// Clients link contracts only.
	{packages: "cmd/machinectl", may: []string{"internal/...", "dbus", "dbus/machine1", "dbus/import1"}},
	{packages: "cmd/importctl", may: []string{"internal/...", "dbus", "dbus/machine1", "dbus/import1"}},
	{packages: "cmd/machine-spawn", may: []string{"spawn/...", "internal/...", "dbus", "dbus/machine1"}},
	{packages: "cmd/machine-importd", may: []string{"transfer/...", "image", "polkit", "dbus", "dbus/import1/...", "varlink", "varlink/transfers", "internal/..."}},
	{packages: "cmd/machined", may: []string{"registry/...", "image/...", "polkit", "dbus", "dbus/machine1/...", "dbus/import1", "dbus/systemd1", "varlink/...", "nss", "units", "internal/..."}},

	// The harness shares no code with the product.
	{packages: "tests/...", may: []string{"tests/..."}},
}

func matches(pattern, pkg string) bool {
	prefix, below := strings.CutSuffix(pattern, "/...")
	return pkg == prefix || below && strings.HasPrefix(pkg, prefix+"/")
}

// source is one package's files, without tests.
type source struct {
	imports []string // as written
	files   []*ast.File
}

// load parses every package of the tree that is at the given path.
func load(t *testing.T, fset *token.FileSet, top string) map[string]*source {
	t.Helper()
	packages := map[string]*source{}
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if p != top && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(fset, p, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		if ast.IsGenerated(file) || ignored(file) {
			return nil
		}
		dir, err := filepath.Rel(top, filepath.Dir(p))
		if err != nil {
			return err
		}
		dir = filepath.ToSlash(dir)
		if packages[dir] == nil {
			packages[dir] = &source{}
		}
		s := packages[dir]
		s.files = append(s.files, file)
		for _, i := range file.Imports {
			text, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			if !slices.Contains(s.imports, text) {
				s.imports = append(s.imports, text)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(packages) == 0 {
		t.Fatal(errors.New("no package found in " + top))
	}
	return packages
}

// ignored says whether a file is a program to be run by hand ("//go:build ignore").
func ignored(f *ast.File) bool {
	for _, group := range f.Comments {
		if group.Pos() > f.Package {
			break
		}
		for _, c := range group.List {
			if strings.TrimSpace(c.Text) == "//go:build ignore" {
				return true
			}
		}
	}
	return false
}

// TestImportsPointOneWay holds every package against its row of the table.
func TestImportsPointOneWay(t *testing.T) {
	packages := load(t, token.NewFileSet(), "..")
	for pkg, s := range packages {
		row := slices.IndexFunc(layers, func(l layer) bool { return matches(l.packages, pkg) })
		if row < 0 {
			t.Errorf("%s: no layer: give it a row in this table", pkg)
			continue
		}
		l := layers[row]
		for _, i := range s.imports {
			if i == "C" {
				t.Errorf("%s uses cgo: programs are static", pkg)
			}
			own, ok := strings.CutPrefix(i, module+"/")
			if !ok {
				continue
			}
			if !slices.ContainsFunc(l.may, func(p string) bool { return matches(p, own) }) {
				t.Errorf("%s imports %s; it may import %v", pkg, own, l.may)
			}
		}
		if l.noBus {
			if way := wayTo(packages, pkg, "github.com/godbus/dbus/", nil); way != nil {
				t.Errorf("%s links the bus: %s", pkg, strings.Join(way, " -> "))
			}
		}
	}
}

// wayTo is a chain of imports from a package to one with the given prefix, nil if there is none.
func wayTo(packages map[string]*source, pkg, prefix string, seen map[string]bool) []string {
	if seen == nil {
		seen = map[string]bool{}
	}
	if seen[pkg] || packages[pkg] == nil {
		return nil
	}
	seen[pkg] = true
	for _, i := range packages[pkg].imports {
		if strings.HasPrefix(i, prefix) {
			return []string{pkg, i}
		}
	}
	for _, i := range packages[pkg].imports {
		own, ok := strings.CutPrefix(i, module+"/")
		if !ok {
			continue
		}
		if way := wayTo(packages, own, prefix, seen); way != nil {
			return append([]string{pkg}, way...)
		}
	}
	return nil
}

// TestStageStartsFast: the set-up stage's start is the product's start-up time,
// so what costs at initialisation stays out of its reach.
func TestStageStartsFast(t *testing.T) {
	packages := load(t, token.NewFileSet(), "..")
	if packages["spawn/stage"] == nil {
		t.Skip("no spawn/stage in this tree")
	}
	for _, heavy := range []string{
		"github.com/spf13/cobra", "github.com/godbus/", "github.com/google/nftables", "github.com/vishvananda/",
		"github.com/sirupsen/", "net/http", "encoding/xml",
	} {
		if way := wayTo(packages, "spawn/stage", heavy, nil); way != nil {
			t.Errorf("spawn/stage links a heavy package: %s", strings.Join(way, " -> "))
		}
	}
}

// privileged are the calls that act on mounts, namespaces and processes.
var privileged = []string{
	"Mount", "Unmount", "MoveMount", "OpenTree", "Fsmount", "MountSetattr", "PivotRoot", "Chroot",
	"Setns", "Unshare", "Kill", "PidfdSendSignal",
}

// mayAct are the packages that may use them: all, or only those named.
var mayAct = []struct {
	pkg   string
	calls []string // empty: all
	why   string
}{
	{pkg: "internal/sys", why: "wraps them"},
	{pkg: "internal/nsexec", why: "works inside machines"},
	{pkg: "spawn/stage", why: "sets machines up"},
	{pkg: "spawn", calls: []string{"PidfdSendSignal"}, why: "passes signals on to its payload, by pidfd"},
	{pkg: "internal/netaddr", calls: []string{"Setns"}, why: "reads addresses in a machine's network namespace, on a thread of its own"},
	{pkg: "internal/overlay", calls: []string{"Fsmount", "MoveMount", "Unmount", "MountSetattr"}, why: "mounts images that are kept as layers"},
	{pkg: "image", calls: []string{"Fsmount"}, why: "reads what is in a disk image through a read-only mount that is attached nowhere"},
	{pkg: "internal/cli", calls: []string{"Kill"}, why: "a client ends by the signal that interrupted it: kills itself"},
	{pkg: "cmd/machine-spawn", calls: []string{"Kill"}, why: "ends by the signal that interrupted it: kills itself"},
	{pkg: "cmd/machine-importd", calls: []string{"Kill"}, why: "ends its own workers"},
	{pkg: "tests/vm", calls: []string{"Kill"}, why: "ends commands of the test's that take too long"},
	{pkg: "tests/host", why: "is a spawner of its own, so that a bug in the product cannot hide in the harness"},
}

func allowed(pkg, call string) bool {
	for _, m := range mayAct {
		if m.pkg == pkg {
			return len(m.calls) == 0 || slices.Contains(m.calls, call)
		}
	}
	return false
}

// TestPrivilegedCalls finds calls of them elsewhere.
func TestPrivilegedCalls(t *testing.T) {
	fset := token.NewFileSet()
	for pkg, s := range load(t, fset, "..") {
		for _, f := range s.files {
			ast.Inspect(f, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); ok && (x.Name == "unix" || x.Name == "syscall") && slices.Contains(privileged, sel.Sel.Name) && !allowed(pkg, sel.Sel.Name) {
					t.Errorf("%s: %s.%s is not for package %s: see mayAct", fset.Position(n.Pos()), x.Name, sel.Sel.Name, pkg)
				}
				return true
			})
		}
	}
}
