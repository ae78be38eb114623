package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// vmPackages are what the tree of a virtual machine has beside those of a host: a
// kernel, and the tools that make protected images to test with.
var vmPackages = []string{"linux-image-cloud-amd64", "kmod", "cryptsetup-bin", "dmsetup", "openssl", "e2fsprogs", "fdisk", "erofs-utils"}

// vmScript makes a minbase tree one that boots on (virtual) hardware. Its initrd has
// the root's driver and file system and no more: what Debian makes takes a minute
// under emulation.
const vmScript = trim + `
useradd -m -s /bin/bash alice
systemctl enable systemd-networkd.service
systemctl mask systemd-networkd-wait-online.service systemd-firstboot.service \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
	console-getty.service getty.target serial-getty@ttyS0.service systemd-pcrlock-make-policy.service
sed -i 's/^hosts:.*/hosts: files mymachines dns myhostname/' /etc/nsswitch.conf
rm -f /etc/machine-id /var/lib/dbus/machine-id
touch -r /usr /etc/.updated /var/.updated

version=$(cd /lib/modules; ls -d * | tail -n1)
cp /boot/vmlinuz-"$version" /boot/vmlinuz
initrd=$(mktemp -d); cd "$initrd"
mkdir -p bin mod proc sys dev root
cp /bin/busybox bin/busybox
n=100
for module in virtio_pci virtio_blk ext4; do
	modprobe --show-depends -S "$version" $module
done | while read -r kind file _; do
	[ "$kind" = insmod ] || continue
	[ ! -e "mod/.$(basename "$file")" ] || continue
	: >"mod/.$(basename "$file")"
	n=$((n+1))
	case $file in
	*.xz) xz -dc "$file" >mod/$n.ko ;;
	*.zst) zstd -dcq "$file" >mod/$n.ko ;;
	*) cp "$file" mod/$n.ko ;;
	esac
done
cat >init <<'I'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sysfs /sys; $b mount -t devtmpfs dev /dev
for m in /mod/*.ko; do $b insmod $m; done
tries=100
until [ -b /dev/vda ]; do tries=$((tries-1)); [ $tries -gt 0 ] || exit 1; $b sleep 0.1; done
$b mount -t ext4 /dev/vda /root || exit 1
$b umount /proc; $b umount /sys; $b mount --move /dev /root/dev
exec $b switch_root /root /lib/systemd/systemd
I
chmod 755 init
find . | busybox cpio -o -H newc 2>/dev/null | gzip >/boot/initrd
cd /; rm -rf "$initrd" /boot/initrd.img* /boot/vmlinuz-* /boot/System.map*
`

func vmRecipe(s Suite) recipe {
	return recipe{kind: "vm", suite: s, packages: append(hostRecipe(s).packages, vmPackages...), script: vmScript}
}

// VMImage is a root file system for a virtual machine in one ext4 file, made if the
// cache has none: Debian of the suite with stock's programs, and a container tree as
// the image "debian" in /var/lib/machines. Kernel and initrd lie beside it. All three
// are the cache's: copy what is to be changed.
func VMImage(ctx context.Context, s Suite) (image, kernel, initrd string, err error) {
	tree, err := ensure(ctx, vmRecipe(s))
	if err != nil {
		return "", "", "", err
	}
	machine, err := ensure(ctx, osRecipe(s))
	if err != nil {
		return "", "", "", err
	}
	image = tree + "+" + filepath.Base(machine) + ".ext4"
	kernel, initrd = filepath.Join(tree, "boot/vmlinuz"), filepath.Join(tree, "boot/initrd")
	lock, err := flock(tree + ".lock")
	if err != nil {
		return "", "", "", err
	}
	defer lock.Close()
	if _, err := os.Stat(image); err == nil {
		now := time.Now()
		return image, kernel, initrd, os.Chtimes(image, now, now)
	}
	old, _ := filepath.Glob(filepath.Join(CacheDir(), "vm-"+string(s)+"-*.ext4*"))
	for _, o := range old {
		if info, err := os.Stat(o); err == nil && time.Since(info.ModTime()) > staleAfter {
			_ = os.Remove(o)
		}
	}
	const script = `mkdir -p "$1/var/lib/machines/debian"
mount --bind "$2" "$1/var/lib/machines/debian"
rm -f "$3.new"; truncate -s 6G "$3.new"
mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=0 -d "$1" "$3.new"
mv "$3.new" "$3"`
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "image", tree, machine, image)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", "", "", errors.Join(fmt.Errorf("make image of %q: %w\n%s", tree, err, out), os.Remove(image+".new"))
	}
	return image, kernel, initrd, nil
}

// Source is the source tree and the directory of the programs to test.
func Source() (top, programsDir string, err error) {
	top, err = sourceTree()
	return top, programs(top), err
}

// Scratch is a directory on the file system of the cache and a cgroup, which go
// away, with all processes in it, when it is closed or with this process, however
// that ends.
type Scratch struct {
	Dir    string
	reaper *reaper
	cgroup string
}

// NewScratch makes one; the name is unique on this machine.
func NewScratch(name string) (*Scratch, error) {
	cgroups, err := cgroupRoot()
	if err != nil {
		return nil, err
	}
	s := &Scratch{Dir: filepath.Join(workDir(), name), cgroup: filepath.Join(cgroups, "machined-test-"+name)}
	if s.reaper, err = startReaper(reapSpec{Dir: s.Dir, Cgroup: s.cgroup}); err != nil {
		return nil, err
	}
	if err := errors.Join(os.MkdirAll(s.Dir, 0o755), os.MkdirAll(s.cgroup, 0o755)); err != nil {
		return nil, errors.Join(err, s.reaper.finish())
	}
	return s, nil
}

// Start starts a command in the cgroup.
func (s *Scratch) Start(cmd *exec.Cmd) error {
	cg, err := os.Open(s.cgroup)
	if err != nil {
		return err
	}
	defer cg.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(cg.Fd())}
	return cmd.Start()
}

// Close removes it.
func (s *Scratch) Close() error { return s.reaper.finish() }
