package spawn

import (
	"os"
	"path/filepath"
	"testing"
)

func TestParseLent(t *testing.T) {
	want := lentLink{index: 7, name: "eth0", container: "host0"}
	if got, err := parseLent(want.String()); err != nil || got != want {
		t.Errorf("parseLent(%q): got %v, %v", want, got, err)
	}
	for _, bad := range []string{"", "7 eth0", "x eth0 host0", "7 eth0 host0 more"} {
		if _, err := parseLent(bad); err == nil {
			t.Errorf("parseLent(%q): got no error", bad)
		}
	}
}

// Only what nobody holds any more is given back, and only what is asked for.
func TestGiveBackAll(t *testing.T) {
	parent := t.TempDir()
	dirs := map[string]string{}
	for _, name := range []string{"held+0011223344556677", "gone+0011223344556677", "other+0011223344556677", "foreign"} {
		dir := filepath.Join(parent, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, lentLinks), []byte("1 a b\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		dirs[name[:4]] = dir
	}
	lock, err := lockDir(dirs["held"])
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	there := func(name string) bool { _, err := os.Stat(dirs[name]); return err == nil }
	if err := giveBackAll(parent, "gone"); err != nil {
		t.Fatal(err)
	}
	if there("gone") || !there("othe") {
		t.Errorf("after giving back one: gone %v, other %v", there("gone"), there("othe"))
	}
	if err := giveBackAll(parent, ""); err != nil {
		t.Fatal(err)
	}
	if !there("held") || !there("fore") || there("othe") {
		t.Errorf("after giving back all: held %v, foreign %v, other %v", there("held"), there("fore"), there("othe"))
	}
	if err := giveBackAll(filepath.Join(parent, "missing"), ""); err != nil {
		t.Errorf("missing directory: %v", err)
	}
}
