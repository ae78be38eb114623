package host

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// OSTree puts a Debian tree of the host's own suite into /var/lib/machines as
// machine NAME and returns its path in the host.
func (h *Host) OSTree(t testing.TB, name string) string {
	t.Helper()
	return h.OSTreeOf(t, h.Suite, name)
}

// OSTreeOf is OSTree with a tree of another suite.
func (h *Host) OSTreeOf(t testing.TB, suite Suite, name string) string {
	t.Helper()
	return h.tree(t, osRecipe(suite), name)
}

// EngineTree is OSTree with a container engine in it, and a container's tree as
// /root/busybox.tar.
func (h *Host) EngineTree(t testing.TB, name string) string {
	t.Helper()
	return h.tree(t, engineRecipe(h.Suite), name)
}

func (h *Host) tree(t testing.TB, r recipe, name string) string {
	t.Helper()
	src, err := ensure(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	dst := filepath.Join(h.Machines(), name)
	// A real copy, made in the kernel where the file system can share blocks.
	if out, err := exec.Command("cp", "-a", "--reflink=auto", src, dst).CombinedOutput(); err != nil {
		t.Fatalf("copy tree %q: %v: %s", src, err, out)
	}
	return "/var/lib/machines/" + name
}

// BusyboxTree makes a tiny tree in /var/lib/machines: busybox, all its
// commands, an os-release and a user. Its /sbin/init waits until it is asked to power off.
func (h *Host) BusyboxTree(t testing.TB, name string) string {
	t.Helper()
	h.Shell(t, busyboxScript+"\nmake_tree /var/lib/machines/"+name)
	return "/var/lib/machines/" + name
}

// busyboxScript makes the tree with hard links to one busybox.
const busyboxScript = `
make_tree() {
	mkdir -p "$1"; cd "$1"
	mkdir -p bin sbin usr/bin usr/sbin etc dev proc sys run tmp root home/user var/lib var/tmp var/log usr/lib
	cp /bin/busybox bin/busybox
	for a in $(/bin/busybox --list); do [ "$a" = busybox ] || ln -f bin/busybox "bin/$a"; done
	rm -f bin/init; cat >sbin/init <<'I'
#!/bin/sh
# 37 is SIGRTMIN+3, by which a spawner asks init to power off.
trap 'exit 0' 37
while :; do sleep 1000000 & wait $!; done
I
	chmod 755 sbin/init; ln -f bin/busybox usr/bin/env
	cat >bin/getent <<'G'
#!/bin/sh
# What the spawner asks for a user.
[ "$1" = initgroups ] && { echo "$2 100 101"; exit 0; }
[ "$1" = passwd ] || exit 2
grep -m1 "^$2:" /etc/passwd || exit 2
G
	chmod 755 bin/getent; cp bin/getent usr/bin/getent
	printf 'ID=busybox\nVERSION_ID=1\nPRETTY_NAME="Busybox tree"\n' >etc/os-release; cp etc/os-release usr/lib/os-release
	printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >etc/passwd
	printf 'root:x:0:\nusers:x:100:user\nextra:x:101:user\nuser:x:1000:\nnogroup:x:65534:\n' >etc/group
	chown -R 1000:1000 home/user; chmod 1777 tmp var/tmp
}
`

// CopyIn copies a file or a tree of this machine into the host.
func (h *Host) CopyIn(t testing.TB, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(h.Path(to)), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", from, h.Path(to)).CombinedOutput(); err != nil {
		t.Fatalf("copy %q into host: %v: %s", from, err, out)
	}
}

// WriteFile writes a file of the host, with its parents.
func (h *Host) WriteFile(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	p := h.Path(path)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(p, mode); err != nil {
		t.Fatal(err)
	}
}
