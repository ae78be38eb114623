package stage

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

func TestAccounts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	root, err := openTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.close()
	if _, err := accountLine(root, "passwd", "root"); err == nil {
		t.Error("found a user without a file")
	}
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("passwd", "short:x:1\nroot:x:0:0:root:/root:/bin/sh\nbob:x:1000:100::/home/bob:/bin/ash")
	write("group", "root:x:0:\nusers:x:100:bob\nwheel:x:10:root,bob\nbad:x:y:bob\n")
	for key, want := range map[string]string{"bob": "bob:x:1000:100::/home/bob:/bin/ash", "0": "root:x:0:0:root:/root:/bin/sh"} {
		if got, err := accountLine(root, "passwd", key); err != nil || got != want {
			t.Errorf("%s: got %q, %v", key, got, err)
		}
	}
	if _, err := accountLine(root, "passwd", "short"); err == nil {
		t.Error("took a line that is none")
	}
	groups, known := groupsOf(root, passwd{name: "bob", gid: 100})
	if !known || !slices.Equal(groups, []uint32{100, 10}) {
		t.Errorf("groups: got %v, %v", groups, known)
	}
	if got := parseInitgroups("bob 5 x 6"); !slices.Equal(got, []uint32{5, 6}) {
		t.Errorf("initgroups: got %v", got)
	}
	// What only looks like the file is not waited for.
	if err := os.Remove(filepath.Join(dir, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "etc/passwd"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := accountLine(root, "passwd", "bob"); err == nil {
		t.Error("read a pipe")
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "etc/x")); err != nil {
		t.Fatal(err)
	}
	if _, err := accountFile(root, "/etc/x"); err == nil {
		t.Error("followed a link out of the tree")
	}
}
