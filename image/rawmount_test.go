package image

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestRawMetadata(t *testing.T) {
	needRoot(t)
	skip := func(reason string) {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	if _, err := exec.LookPath("mke2fs"); err != nil {
		skip("needs mke2fs (e2fsprogs)")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		skip("needs loop devices")
	}
	s, base := testStore(t)
	tree := t.TempDir()
	write(t, filepath.Join(tree, "etc/hostname"), "box\n")
	write(t, filepath.Join(tree, "etc/os-release"), "ID=deb\n")
	disk := filepath.Join(base, "pool/d.raw")
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", tree, disk, "16M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	before, _ := os.ReadFile(disk)
	m, err := s.Metadata(context.Background(), "d")
	if err != nil {
		t.Fatal(err)
	}
	if m.Hostname != "box" || m.OSRelease.Get("ID") != "deb" {
		t.Errorf("metadata = %+v", m)
	}
	if after, _ := os.ReadFile(disk); string(after) != string(before) {
		t.Error("reading has changed the image")
	}
}
