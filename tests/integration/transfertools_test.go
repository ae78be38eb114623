//go:build integration

package integration

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machined/tests/host"
)

// TestTransferTools calls the programs that do one transfer each, as
// systemd-sysupdate, stock's importd and units made by systemd-import-generator do.
func TestTransferTools(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		if h.Impl == host.Stock && h.Suite == host.Bookworm {
			return // 252's hang on files that are given as standard input or lie on /srv
		}
		h.Shell(t, `mkdir -p /srv/tree/etc /srv/www; cd /srv; head -c 300000 /dev/urandom >disk.raw; echo x >tree/etc/file
tar -czf www/tree.tar.gz -C tree .; xz -c disk.raw >www/disk.raw.xz; cd www; sha256sum * >SHA256SUMS`)
		sum := strings.Fields(h.Shell(t, "sha256sum /srv/www/disk.raw.xz"))[0]
		const lib = "/usr/lib/systemd/systemd-"
		t.Run("images", func(t *testing.T) {
			h.Shell(t, `set -e; cd /srv
`+lib+`import tar www/tree.tar.gz
test -f /var/lib/machines/tree/etc/file
! `+lib+`import tar www/tree.tar.gz
`+lib+`import --force --read-only tar www/tree.tar.gz; ! touch /var/lib/machines/tree/x
`+lib+`import --image-root=/srv/images raw - piped <disk.raw; cmp disk.raw /srv/images/piped.raw
`+lib+`import-fs run tree copied; test -f /var/lib/machines/copied/etc/file
`+lib+`export tar copied - | tar -t | grep -q etc/file
`+lib+`export raw /srv/images/piped.raw out.raw.gz; zcat out.raw.gz | cmp - disk.raw
`+lib+`pull --verify=checksum raw file:///srv/www/disk.raw.xz; cmp disk.raw /var/lib/machines/disk.raw
! `+lib+`pull raw file:///srv/www/disk.raw.xz unsigned; test ! -e /var/lib/machines/unsigned.raw
! `+lib+`pull --verify=no raw gopher://x/y
machinectl read-only tree no; machinectl remove tree copied disk; machinectl clean --all`)
		})
		t.Run("direct", func(t *testing.T) {
			h.Shell(t, `set -e; cd /srv
`+lib+`pull --direct --verify=`+sum+` raw file:///srv/www/disk.raw.xz - | cmp - disk.raw
! `+lib+`pull --direct --verify=`+strings.Repeat("0", 64)+` raw file:///srv/www/disk.raw.xz /srv/wrong
head -c 1M /dev/zero | tr '\0' a >part; cp part want; dd if=disk.raw of=want bs=4096 seek=2 conv=notrunc status=none
`+lib+`import --direct --offset=8192 --size-max=512K raw disk.raw /srv/part; cmp part want
! `+lib+`import --direct --size-max=1K raw disk.raw /srv/small
mkdir -p direct; `+lib+`import --direct tar www/tree.tar.gz /srv/direct; test -f direct/etc/file
`+lib+`import-fs --direct run tree /srv/direct2; test -f direct2/etc/file
`+lib+`pull --direct --verify=no raw file:///srv/www/SHA256SUMS - | cmp - www/SHA256SUMS
! `+lib+`pull --direct raw file:///srv/www/SHA256SUMS - >/dev/null`)
		})
		if r := h.Try(lib+"sysupdate", "--version"); r.Exit == 0 { // Debian 12 has none
			t.Run("sysupdate", func(t *testing.T) {
				h.Shell(t, `set -e; cd /srv; mkdir -p defs updates/target updates/trees; cp disk.raw updates/app_1.raw; cp www/tree.tar.gz updates/app_1.tar.gz
(cd updates; sha256sum app_1.raw app_1.tar.gz >SHA256SUMS)
for kind in file tar; do
	printf '[Transfer]\nVerify=no\n[Source]\nType=url-%s\nPath=file:///srv/updates\nMatchPattern=app_@v.%s\n' $kind "$([ $kind = tar ] && echo tar.gz || echo raw)"
	printf '[Target]\nType=%s\nPath=/srv/updates/%s\nMatchPattern=app_@v%s\n' "$([ $kind = tar ] && echo directory || echo regular-file)" "$([ $kind = tar ] && echo trees || echo target)" "$([ $kind = tar ] || echo .raw)"
done >all
csplit -sz all '/^\[Transfer\]/' '{*}'; mv xx00 defs/a.conf; mv xx01 defs/b.conf; cp defs/a.conf defs/a.transfer; cp defs/b.conf defs/b.transfer`)
				r := h.Try(lib+"sysupdate", "--definitions=/srv/defs", "update")
				if r.Exit != 0 {
					t.Fatalf("systemd-sysupdate: %v", r)
				}
				h.Shell(t, "cmp /srv/disk.raw /srv/updates/target/app_1.raw && test -f /srv/updates/trees/app_1/etc/file")
			})
		}
		t.Run("stock's importd", func(t *testing.T) {
			if h.Impl == host.Stock {
				t.Skip("what it does all day")
			}
			h.Shell(t, "systemctl stop systemd-importd.socket systemd-importd.service")
			defer h.Shell(t, "systemctl start systemd-importd.socket")
			daemon := h.Start(t, h.Stock("systemd-importd"))
			defer func() { _ = daemon.Signal(h, unix.SIGTERM); daemon.Wait(t) }()
			host.Eventually(t, 20*time.Second, func() error {
				if r := h.Try("busctl", "status", "org.freedesktop.import1"); r.Exit != 0 {
					return unix.ENOENT
				}
				return nil
			})
			client := h.Stock("machinectl")
			r := h.Try(client, "pull-raw", "--verify=checksum", "file:///srv/www/disk.raw.xz", "pulled")
			if r.Exit != 0 {
				t.Fatalf("pull-raw: %v", r)
			}
			match(t, r.Stderr, `Pulling 'file:///srv/www/disk\.raw\.xz', saving as 'pulled'\.`, `SHA256 checksum of file:///srv/www/disk\.raw\.xz is valid\.`, `^Exiting\.`)
			h.Shell(t, `set -e; cmp /srv/disk.raw /var/lib/machines/pulled.raw
`+client+` import-tar /srv/www/tree.tar.gz t; `+client+` import-fs /srv/tree f; `+client+` export-tar t /srv/t.tar.xz; tar -tf /srv/t.tar.xz | grep -q etc/file
! `+client+` import-tar /srv/disk.raw bad
machinectl remove pulled t f; machinectl clean --all`)
		})
	})
}

// TestImportGenerator boots nothing: it runs the generator as systemd does and starts what it wrote.
func TestImportGenerator(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		const generator = "/usr/lib/systemd/system-generators/systemd-import-generator"
		if h.Impl == host.Stock {
			t.Skip("its units are started through importd, or not there at all")
		}
		h.Shell(t, `mkdir -p /srv/www/etc /run/creds; cd /srv/www; echo x >etc/file; tar -czf 'a b.tar.gz' etc; head -c 5000 /dev/urandom >disk.raw
printf '# two\nraw,sysext,ro,verify=no::file:///srv/www/disk.raw\nraw,machine:broken:http://\n' >/run/creds/import.pull`)
		out := h.Shell(t, `mkdir /run/gen; CREDENTIALS_DIRECTORY=/run/creds SYSTEMD_PROC_CMDLINE='quiet systemd.pull=tar,confext,verify=no:"my name":file:///srv/www/a%20b.tar.gz rd.systemd.pull=tar,confext:no:file:///x' \
`+generator+` /run/gen /run/gen /run/gen 2>&1; cp -r /run/gen/* /run/systemd/system/; systemctl daemon-reload; systemctl start imports.target; systemctl --failed --no-legend`)
		match(t, out, `pull expression "raw,machine:broken:http://" is left out`)
		if strings.Contains(out, "import0") || strings.Contains(out, "import1") {
			t.Errorf("a download failed:\n%s\n%s", out, h.Try("journalctl", "-u", "import*").Output())
		}
		h.Shell(t, `cmp /srv/www/etc/file '/var/lib/confexts/my name/etc/file' && cmp /srv/www/disk.raw /var/lib/extensions/disk.raw && test ! -w /var/lib/extensions/disk.raw -o "$(stat -c %a /var/lib/extensions/disk.raw)" = 444`)
		if out := h.Shell(t, "ls /var/lib/confexts"); out != "my name\n" {
			t.Errorf("images: %q", out)
		}
	})
}
