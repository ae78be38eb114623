package spawn

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRunDir(t *testing.T) {
	parent := t.TempDir()
	foreign := []string{".#machine.x0011223344556677", "nspawn-temp-abc", "deb", ".#deb.lck"}
	for _, name := range foreign {
		if err := os.MkdirAll(filepath.Join(parent, name, "below"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	left := filepath.Join(parent, ".#machine.deb+0011223344556677")
	if err := os.MkdirAll(filepath.Join(left, "upper", "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(parent, "nspawn-temp-+0011223344556677")
	if err := os.Symlink(filepath.Join(parent, "deb"), link); err != nil {
		t.Fatal(err)
	}
	first, second := &machine{}, &machine{}
	a, err := first.runDir(parent, ".#machine.deb", 0o700)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.runDir(parent, "nspawn-temp-", 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("what a killed run left: got %v, want it gone", err)
	}
	if _, err := os.Stat(a); err != nil {
		t.Errorf("directory of a running machine: %v", err)
	}
	for _, name := range foreign {
		if _, err := os.Stat(filepath.Join(parent, name, "below")); err != nil {
			t.Errorf("foreign directory: %v", err)
		}
	}
	first.cleanUp(false)
	second.cleanUp(false)
	if got, _ := filepath.Glob(filepath.Join(parent, "*+*")); len(got) != 1 || got[0] != link {
		t.Errorf("after the end: got %v, want only %s", got, link)
	}
}
