package host

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// mkosiRecipe is a tree with Debian's mkosi in it. apt installs it: debootstrap knows
// nothing of packages that others provide.
func mkosiRecipe() recipe {
	return recipe{kind: "mkosi", suite: Trixie, packages: []string{"apt", "ca-certificates", "debian-archive-keyring"}, script: `
mkdir -p /work
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qqy --no-install-recommends install mkosi systemd systemd-repart dosfstools e2fsprogs mtools
`}
}

// mkosiBuild runs mkosi in its tree: a root of its own, as it makes namespaces and
// changes roots itself.
const mkosiBuild = `
tree=$1 mirror=$2 format=$3
mount --bind "$tree" "$tree"; cd "$tree"
mkdir -p oldroot work/out work/cache
mount -t proc proc proc; mount --rbind /sys sys; mount --rbind /dev dev; mount -t tmpfs tmpfs run; mount -t tmpfs tmpfs tmp
cp /etc/resolv.conf etc/resolv.conf
pivot_root . oldroot; umount -l /oldroot; cd /work
exec mkosi --directory /work --distribution debian --release trixie --local-mirror "$mirror" --format "$format" --output "image-$format" \
	--package systemd,systemd-sysv,dbus,udev,login --bootable=no --with-network=no --output-directory /work/out \
	--package-cache-dir /work/cache --compress-output=no --force build </dev/null
`

// Mkosi is a Debian image that Debian's mkosi has built, in one of its formats: "tar"
// or "disk". It is kept in the cache; the first one takes minutes and the network.
// $MACHINED_TEST_MKOSI may be a directory that has them already.
func Mkosi(ctx context.Context, format string) (string, error) {
	if dir := os.Getenv("MACHINED_TEST_MKOSI"); filepath.IsAbs(dir) {
		return filepath.Join(dir, mkosiFile(format)), nil
	}
	tree, err := ensure(ctx, mkosiRecipe())
	if err != nil {
		return "", err
	}
	lock, err := flock(tree + ".work.lock")
	if err != nil {
		return "", err
	}
	defer lock.Close()
	image := filepath.Join(tree, "work/out", mkosiFile(format))
	done := image + ".done"
	if st, err := os.Stat(done); err == nil && time.Since(st.ModTime()) < staleAfter {
		return image, nil
	}
	log, err := os.Create(tree + "." + format + ".log")
	if err != nil {
		return "", err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-ec", mkosiBuild, "sh", tree, mirror(), format)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("mkosi (log: %s): %w", log.Name(), err)
	}
	f, err := os.Create(done)
	if err != nil {
		return "", err
	}
	return image, f.Close()
}

func mkosiFile(format string) string {
	return "image-" + format + map[string]string{"tar": ".tar", "disk": ".raw"}[format]
}
