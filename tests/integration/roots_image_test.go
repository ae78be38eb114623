//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"machined/tests/host"
)

// imageID is the machine ID in the images of these tests.
const imageID = "0123456789abcdef0123456789abcdef"

// buildImages makes disk images of a small tree in /var/tmp/images of the host:
// bare file systems, an MBR and a generic GPT one, and one with discoverable partitions.
func buildImages(t *testing.T, h *host.Host) {
	t.Helper()
	h.BusyboxTree(t, "tree")
	h.Shell(t, "mkdir -p /var/tmp/images; cd /var/lib/machines/tree; mkdir -p efi boot home srv; echo "+imageID+" >etc/machine-id")
	cmd := exec.Command("bash", "-euc", buildScript)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "TREE="+filepath.Join(h.Machines(), "tree"), "TMP="+t.TempDir())
	cmd.Dir = h.Path("/var/tmp/images")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make images: %v\n%s", err, out)
	}
	h.Shell(t, "rm -rf /var/lib/machines/tree")
}

// mkfs.btrfs makes copies of hard links.
const buildScript = `
for f in $TREE/bin/* $TREE/usr/bin/*; do
	[ $f -ef $TREE/bin/busybox ] && [ $f != $TREE/bin/busybox ] && ln -sf /bin/busybox $f
done
mkfs.ext4 -q -d $TREE ext4.raw 24M
mkfs.btrfs -q -M --rootdir $TREE -b 32M btrfs.raw >/dev/null 2>&1
mksquashfs $TREE squashfs.raw -quiet -no-progress -comp gzip >/dev/null
mkfs.erofs --quiet erofs.raw $TREE >/dev/null 2>&1 || mkfs.erofs erofs.raw $TREE >/dev/null
truncate -s 26M mbr.raw generic.raw
printf 'label: dos\nstart=2048,size=24MiB,type=83,bootable\n' | sfdisk -q mbr.raw
printf 'label: gpt\nstart=2048,size=24MiB,type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n' | sfdisk -q generic.raw
for i in mbr generic; do dd if=ext4.raw of=$i.raw bs=1M seek=1 conv=notrunc status=none; done

truncate -s 262M grow.raw # btrfs wants no less
printf 'label: gpt\nstart=2048,size=260MiB,type=0FC63DAF-8483-4772-8E79-3D69D8477DE4,attrs="GUID:59"\n' | sfdisk -q grow.raw
mkfs.btrfs -q -M --rootdir $TREE -b 32M grown >/dev/null 2>&1 # the kernel takes two of one id for one
dd if=grown of=grow.raw bs=1M seek=1 conv=notrunc status=none; rm grown

# The discoverable one: /usr, /home and so on are other file systems than the root.
for p in usr home srv var tmp boot old; do mkdir $TMP/$p; echo $p >$TMP/$p/which; done
cp -a $TREE/usr/. $TMP/usr/; cp -a $TREE $TMP/root; rm -rf $TMP/root/usr/*; mkdir $TMP/var/tmp
cp -a $TMP/root/. $TMP/old/; echo old >$TMP/old/which; echo new >$TMP/root/which
mkfs.ext4 -q -d $TMP/old p1 16M; mkfs.ext4 -q -d $TMP/root p2 16M; mksquashfs $TMP/usr p3 -quiet -no-progress >/dev/null
mkfs.btrfs -q -M --rootdir $TMP/home -b 32M p4 >/dev/null 2>&1; mkfs.ext4 -q -d $TMP/srv p5 4M; mkfs.ext4 -q -d $TMP/var p6 4M
mkfs.ext4 -q -d $TMP/tmp p7 4M; mkfs.ext4 -q -d $TMP/boot p8 4M; mkfs.ext4 -q -d $TMP/srv p9 4M; mkfs.ext4 -q -d $TMP/boot p10 4M
case $(uname -m) in
x86_64) root=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709 usr=8484680C-9521-48C6-9C11-B0720656F69E ;;
aarch64) root=B921B045-1DF0-41C3-AF44-4C6F280D3FAE usr=B0E01050-EE5F-4390-949A-9101B17104E9 ;;
*) echo "no partition types for $(uname -m)" >&2; exit 1 ;;
esac
truncate -s 120M gpt.raw
sfdisk -q gpt.raw <<E
label: gpt
start=1MiB, size=16MiB, type=$root, name=os_1.9
start=17MiB, size=16MiB, type=$root, name=os_1.10
start=33MiB, size=8MiB, type=$usr
start=41MiB, size=48MiB, type=933AC7E1-2EB4-4F13-B844-0E14E2AEF915
start=89MiB, size=4MiB, type=3B8F8425-20E0-4F3B-907F-1A25A76F98E8, attrs="GUID:60"
start=93MiB, size=4MiB, type=4D21B016-B534-45C2-A9FB-5C16E091FD2D
start=97MiB, size=4MiB, type=7EC6F557-3BC5-4ACA-B293-16EF5DF639D1
start=101MiB, size=4MiB, type=BC13C2FF-59E6-4262-A352-B275FD6F7172
start=105MiB, size=4MiB, type=3B8F8425-20E0-4F3B-907F-1A25A76F98E8
start=109MiB, size=4MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
start=113MiB, size=4MiB, type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F
E
for n in 1 2 3 4 5 6 7 8 9 10; do
	at=$(sfdisk -l -o Start gpt.raw | tail -n 11 | sed -n ${n}p)
	dd if=p$n of=gpt.raw bs=512 seek=$((at)) conv=notrunc status=none; rm p$n
done
# Only /usr, and its other parts have to be in memory.
truncate -s 12M usr.raw
printf "label: gpt\nstart=1MiB, size=8MiB, type=$usr\n" | sfdisk -q usr.raw
mkdir $TMP/u; cp -a $TREE/usr/. $TMP/u/; rm -rf $TMP/u/bin $TMP/u/sbin; cp -a $TREE/bin $TMP/u/bin; cp -a $TREE/sbin $TMP/u/sbin
mksquashfs $TMP/u u.sq -quiet -no-progress >/dev/null; dd if=u.sq of=usr.raw bs=1M seek=1 conv=notrunc status=none; rm u.sq
mkdir disk.raw.v; cp ext4.raw disk.raw.v/disk_1.9.raw; cp squashfs.raw disk.raw.v/disk_1.10+3-1.raw; : >disk.raw.v/disk_2+0-3.raw; : >disk.raw.v/disk_3_ia64.raw
printf 'LUKS\272\276\0\2' | dd of=luks.raw bs=1M seek=0 status=none; truncate -s 4M luks.raw
truncate -s 4M zeros.raw
`

// TestRootsImages runs machines from all kinds of disk images.
func TestRootsImages(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		buildImages(t, h)
		// What is mounted, as type and flags, and whether it can be written to.
		const view = `for p in / /usr /home /srv /var /var/tmp /boot /efi; do m=$(awk -v p=$p '$5==p{f=$6; for(i=7;$i!="-";i++); t=$(i+1)} END{if(t) print t, f}' /proc/self/mountinfo); w=ro; touch $p/.w 2>/dev/null && w=rw && rm $p/.w; echo "$p $w $(cat $p/which 2>/dev/null) $m"; done; echo id $container_uuid; echo owner $(stat -c %u /bin/busybox); echo size $(df -k / | awk 'END{print $(NF-4)}')`
		table := []struct {
			name, args string
			exit       int
			out        []string
			stock      bool // works with stock where the kernel reads no partition tables
		}{
			{"ext4", "-i ext4.raw", 0, []string{`^/ rw  ext4 .*nodev`, `^id 01234567-89ab-cdef-0123-456789abcdef`, `^owner 0`}, true},
			{"ext4 mapped", "-i ext4.raw -U", 0, []string{`^/ rw  ext4`, `^owner 0`}, true},
			{"btrfs", "-i btrfs.raw -U", 0, []string{`^/ rw  btrfs`, `^owner 0`}, true},
			{"squashfs", "-i squashfs.raw", 0, []string{`^/ ro  squashfs`, `^id 01234567-89ab`}, true},
			{"erofs", "-i erofs.raw", 0, []string{`^/ ro  erofs`}, true},
			{"read-only", "-i ext4.raw --read-only", 0, []string{`^/ ro  ext4 ro,`}, true},
			{"volatile", "-i squashfs.raw --volatile=overlay -U", 0, []string{`^/ rw  overlay`, `^owner 0`}, true},
			{"volatile state", "-i ext4.raw --volatile=state", 0, []string{`^/ ro  ext4`, `^/var rw  tmpfs`}, true},
			{"ephemeral", "-i ext4.raw -x -U", 0, []string{`^/ rw  `, `^owner 0`}, true},
			{"MBR", "-i mbr.raw", 0, []string{`^/ rw  ext4`}, false},
			{"generic", "-i generic.raw -U", 0, []string{`^/ rw  ext4`}, false},
			{"not to be grown", "-i btrfs.raw", 0, []string{`^size [123]....$`}, true},
			{"grown", "-i grow.raw", 0, []string{`^/ rw  btrfs`, `^size 26....$`}, false},
			{
				"discoverable", "-i gpt.raw", 0, []string{
					`^/ rw new ext4 .*nodev`, `^/usr ro usr squashfs`, `^/home rw home btrfs`, `^/srv ro srv ext4 ro`, `^/var rw var ext4`,
					`^/var/tmp rw tmp ext4`, `^/boot rw boot ext4 .*nosuid,nodev,noexec`, `^/efi rw boot ext4 .*nosuid,nodev,noexec`, `^id 01234567-89ab`,
				}, false,
			},
			{"discoverable mapped", "-i gpt.raw -U", 0, []string{`^/ rw new ext4`, `^/home rw home btrfs`, `^/boot rw boot`, `^owner 0`}, false},
			{"discoverable read-only", "-i gpt.raw --read-only", 0, []string{`^/ ro new ext4`, `^/home ro home btrfs`, `^/var/tmp ro tmp`}, false},
			{"discoverable volatile", "-i gpt.raw --volatile=state", 0, []string{`^/ ro new ext4`, `^/home ro home btrfs`, `^/var rw  tmpfs`}, false},
			{"discoverable overlay", "-i gpt.raw --volatile=overlay", 0, []string{`^/ rw new overlay`, `^/home ro home btrfs`, `^/var ro var`}, false},
			{"discoverable ephemeral", "-i gpt.raw -x -U", 0, []string{`^/ rw new overlay`, `^/home rw home overlay`, `^/usr rw usr overlay`, `^owner 0`}, false},
			{"only /usr", "-i usr.raw", 0, []string{`^/ rw  tmpfs`, `^/usr ro  squashfs`}, false},
			{"policy", "-i ext4.raw --image-policy=root=unprotected", 0, []string{`^/ rw  ext4`}, false},
			{"policy of what is missing", "-i ext4.raw --image-policy=root=unprotected:usr=unprotected", 1, []string{`does not match image policy`}, false},
			{"policy of protection", "-i ext4.raw --image-policy=root=verity+encrypted", 1, []string{`does not match image policy`}, false},
			{"policy of absence", "-i gpt.raw --image-policy=root=open:usr=open:=absent", 1, []string{`does not match image policy`}, false},
			{"policy of use", "-i gpt.raw --image-policy=root=open:usr=open", 0, []string{`^/home rw  $`, `^/usr ro usr squashfs`}, false},
			{"policy that is none", "-i ext4.raw --image-policy=nonsense", 1, []string{`image policy`}, false},
			{"versions", "-i disk.raw.v", 0, []string{`^/ ro  squashfs`}, false},
			{"a version", "-i disk.raw.v/disk_1.9.raw", 0, []string{`^/ rw  ext4`}, true},
			{"a pattern", "-i disk.raw.v/disk___.raw", 0, []string{`^/ ro  squashfs`}, false},
			{"encrypted", "-i luks.raw", 1, []string{`luks.raw`}, false},
			{"no image", "-i zeros.raw", 1, []string{`zeros.raw`}, false},
			{"root hash", "-i ext4.raw --root-hash=" + strings.Repeat("ab", 32), 1, []string{`root hash`}, false},
			{"no root hash", "-i ext4.raw --root-hash=abcd", 1, []string{`128`}, false},
			{"absent", "-i absent.raw", 1, []string{`absent.raw`}, false},
		}
		for _, c := range table {
			t.Run(c.name, func(t *testing.T) {
				if h.Impl == host.Stock && !c.stock {
					t.Skip("stock needs partition tables in the kernel, or a newer one")
				}
				image := regexp.MustCompile(`[a-z0-9]+\.raw`).FindString(c.args)
				keeps := strings.Contains(c.args, "--volatile") || strings.Contains(c.args, "-x") || strings.Contains(c.args, "--read-only")
				var old string
				if keeps {
					old = h.Shell(t, "md5sum /var/tmp/images/"+image)
				}
				r := h.Try("bash", "-c", fmt.Sprintf("cd /var/tmp/images; systemd-nspawn -q --console=pipe -M img %s sh -c '%s'", c.args, strings.ReplaceAll(view, "'", `'"'"'`)))
				if r.Exit != c.exit {
					t.Fatalf("want exit %d; got %v", c.exit, r)
				}
				for _, p := range c.out {
					if !regexp.MustCompile("(?m)" + p).MatchString(r.Output()) {
						t.Errorf("no %q in %v", p, r)
					}
				}
				if keeps && h.Shell(t, "md5sum /var/tmp/images/"+image) != old {
					t.Errorf("the image was written to")
				}
			})
		}
		unchanged(t, h, before)
		if left := h.Shell(t, `ls -A /var/tmp/images | { grep '#' || true; }; for i in /var/tmp/images/*.raw; do losetup -j $i; done; true`); strings.TrimSpace(left) != "" {
			t.Errorf("left behind: %s", left)
		}
	})
}

// TestRootsVersions picks trees from versioned directories.
func TestRootsVersions(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "vv.v/vv_1.2")
		h.Shell(t, `cd /var/lib/machines/vv.v; for v in 1.10 1.10~rc1 2+3-1 3+0-2 9_ia64; do cp -al vv_1.2 vv_$v; done
for v in *; do rm -f $v/etc/which; echo $v >$v/etc/which; done; mkdir ../none.v`)
		for _, c := range []struct{ args, want, name string }{
			{"-D /var/lib/machines/vv.v", "vv_2+3-1", "vv23-1"},
			{"-D /var/lib/machines/vv.v/", "vv_2+3-1", "vv23-1"},
			{"-D /var/lib/machines/vv.v/vv___", "vv_2+3-1", "vv23-1"},
			{"-D /var/lib/machines/vv.v/vv_1.2", "vv_1.2", "vv1.2"},
			{"-M vv", "vv_2+3-1", "vv"},
			{"-M named -D /var/lib/machines/vv.v", "vv_2+3-1", "named"},
			{"-x --template=/var/lib/machines/vv.v", "vv_2+3-1", "vv23-1-[0-9a-f]{16}"},
			{"-D /var/lib/machines/none.v", "", ""},
			{"-D /var/lib/machines/vv.v/vv_1___", "", ""},
		} {
			if h.Suite == host.Bookworm && h.Impl == host.Stock {
				t.Skip("not in 252")
			}
			r := h.Try("bash", "-c", "systemd-nspawn -q --console=pipe "+c.args+" sh -c 'cat /etc/which; hostname'")
			if c.want == "" {
				if r.Exit != 1 || !strings.Contains(r.Output(), "No matching entries in versioned directory") {
					t.Errorf("%s: got %v", c.args, r)
				}
				continue
			}
			if !regexp.MustCompile("^" + regexp.QuoteMeta(c.want) + "\n" + c.name + "\n$").MatchString(r.Stdout) {
				t.Errorf("%s: got %v, want %s as %s", c.args, r, c.want, c.name)
			}
		}
	})
}
