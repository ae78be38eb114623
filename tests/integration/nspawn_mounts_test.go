//go:build integration

package integration

import (
	"testing"

	"machined/tests/host"
)

// TestNspawnMounts has each kind of mount that a user can ask for.
func TestNspawnMounts(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		nspawnRows(t, h, []nspawnRow{
			{name: "bind", script: `echo hi >f; mkdir d; touch d/x
				$S --bind=$W/f --bind=$W/d:/mnt/deep/er --pipe sh -c "cat $W/f; ls /mnt/deep/er; echo new >/mnt/deep/er/y"; cat d/y`,
				out: []string{`^hi$`, `^x$`, `^new$`}},
			{name: "bind a file onto a new file", script: `echo hi >f; $S --pipe --bind=$W/f:/var/lib/new.file cat /var/lib/new.file`, out: []string{`^hi$`}},
			{name: "bind of nothing", script: `$S --pipe --bind=$W/nothing true`, exit: 1, out: []string{`nothing`}},
			{name: "bind of nothing, optional", script: `$S --pipe --bind=-$W/nothing true`, exit: 1},
			{name: "bind-ro", script: `mkdir d; touch d/x; $S --pipe --bind-ro=$W/d:/mnt sh -c "ls /mnt; touch /mnt/y"; [ ! -e d/y ]`,
				out: []string{`^x$`, `Read-only file system`}},
			{name: "escaped colon", script: `mkdir a:b; touch a:b/x; $S --pipe '--bind=/var/tmp/work/a\:b:/mnt/c\:d' ls /mnt/c:d`, out: []string{`^x$`}},
			{name: "bind inside the image", script: `$S --pipe --bind=+/home/user:/mnt sh -c 'touch /mnt/z; ls /home/user'; rm $T/home/user/z`, out: []string{`^z$`}},
			{name: "bind a temporary directory", script: `$S --pipe --bind=:/mnt sh -c 'touch /mnt/x; ls /mnt'; ls -A /var/tmp | grep nspawn-temp`, exit: 1, out: []string{`^x$`}},
			{name: "later binds hide earlier ones below", script: `mkdir -p a/sub b; touch a/ina b/inb
				$S --pipe --bind=$W/b:/mnt/sub --bind=$W/a:/mnt sh -c 'ls /mnt /mnt/sub'`, out: []string{`^ina$`, `^inb$`}},
			{name: "rbind", script: `mkdir -p d/sub; mount -t tmpfs tmpfs d/sub; touch d/sub/x; $S --pipe --bind=$W/d:/mnt:rbind ls /mnt/sub; umount d/sub`, out: []string{`^x$`}},
			{name: "norbind", script: `mkdir -p d/sub; mount -t tmpfs tmpfs d/sub; touch d/sub/x; $S --pipe --bind=$W/d:/mnt:norbind ls -A /mnt/sub; umount d/sub`, not: []string{`x`}},
			{name: "bind-ro takes submounts along", script: `mkdir -p d/sub; mount -t tmpfs tmpfs d/sub; $S --pipe --bind-ro=$W/d:/mnt touch /mnt/sub/y; e=$?; umount d/sub; exit $e`, exit: 1, out: []string{`Read-only`}},
			{name: "mounts that come later are seen", script: `mkdir -p d/sub; mkfifo go; (read x <go; mount -t tmpfs tmpfs d/sub; touch d/sub/late; touch mounted) &
				$S --pipe --bind=$W --bind=$W/d:/mnt sh -c "echo >$W/go; until [ -e $W/mounted ]; do :; done; ls /mnt/sub"; umount d/sub`, out: []string{`^late$`}},
			{name: "source in /tmp", script: `mkdir -p /tmp/src; touch /tmp/src/x; $S --pipe --bind=/tmp/src:/tmp/dst sh -c 'ls /tmp/dst; touch /tmp/mine'; [ ! -e /tmp/mine ]; rm -r /tmp/src`, out: []string{`^x$`}},
			{name: "source in /tmp, at its own place", script: `mkdir -p /tmp/src; touch /tmp/src/x; $S --pipe --bind=/tmp/src ls /tmp/src; rm -r /tmp/src`, out: []string{`^x$`}},
			{name: "inaccessible", script: `mkdir -p $T/secret; echo no >$T/secret/f; echo no >$T/var/lib/key; chmod 644 $T/var/lib/key
				$S --pipe --inaccessible=/secret --inaccessible=/var/lib/key sh -c 'ls -A /secret; cat /var/lib/key; stat -c %a /secret /var/lib/key'`,
				out: []string{`^0$`}, not: []string{`^no$`, `^f$`}},
			{name: "inaccessible to a user", script: `$S --pipe --inaccessible=/var/lib/key --user=user cat /var/lib/key`, exit: 1, out: []string{`Permission denied`}},
			{name: "tmpfs", script: `$S --pipe --tmpfs=/mnt/t sh -c "touch /mnt/t/x; stat -c '%a %u' /mnt/t; grep ' /mnt/t ' /proc/self/mountinfo"; ls -A $T/mnt/t`,
				out: []string{`^755 0$`, `- tmpfs tmpfs`}, not: []string{`^x$`}},
			{name: "tmpfs with options", script: `$S --pipe --tmpfs=/mnt/t:mode=0700,size=1m,nosuid,noexec sh -c "stat -c %a /mnt/t; dd if=/dev/zero of=/mnt/t/x bs=1M count=2 2>&1; grep ' /mnt/t ' /proc/self/mountinfo"`,
				out: []string{`^700$`, `No space left`, `size=1024k`, `nosuid`, `noexec`}},
			{name: "tmpfs of a user of the machine", script: `$S --pipe -U --tmpfs=/mnt/t:uid=12,gid=13 stat -c '%u %g' /mnt/t`, out: []string{`^12 13$`}, stock: never},
			{name: "bind in /proc, of the machine's file", script: `$S --pipe --bind=/etc:/proc/fs sh -c 'ls /proc/fs/os-release'; $S --pipe -U --bind-ro=/etc:/proc/fs touch /proc/fs/x; $S --pipe --bind=/var/none:/proc/fs true`,
				exit: 1, out: []string{`^/proc/fs/os-release$`, `Read-only file system`, `Failed to stat /var/none: No such file or directory`}},
			{name: "bind in /sys", script: `mkdir d; touch d/f; $S --pipe --bind=$W/d:/sys/kernel/debug ls /sys/kernel/debug`, out: []string{`^f$`}},
			{name: "tmpfs of a user namespace", script: `$S --pipe -U --tmpfs=/mnt/t sh -c "touch /mnt/t/x && stat -c '%u %a' /mnt/t /mnt/t/x"`, out: []string{`^0 755$`, `^0 644$`}},
			{name: "overlay of three lowers", script: `mkdir 1 2 3 up; echo one >1/a; echo two >2/a; echo three >3/a; touch 1/x 2/y 3/z
				$S --pipe --overlay=$W/1:$W/2:$W/3:$W/up:/mnt sh -c 'cat /mnt/a; ls /mnt; echo new >/mnt/n; rm /mnt/x'; cat up/n; ls 1; ls -A | grep nspawn`,
				exit: 1, out: []string{`^three$`, `^x$`, `^y$`, `^z$`, `^new$`}},
			{name: "overlay of many lowers with long names", script: `for i in 1 2 3 4 5 6; do n=$i-$(printf '%090d' 1); mkdir $n; touch $n/f$i; L=$L:$W/$n; done; mkdir up
				$S --pipe --overlay-ro=${L#:}::/mnt sh -c 'echo $(ls /mnt)'; $S --pipe --overlay=${L#:}:$W/up:/mnt touch /mnt/new; ls up`, out: []string{`^f1 f2 f3 f4 f5 f6$`, `^new$`}},
			{name: "overlay of directories with marks in their names", script: `mkdir 'a,b\c:d' 'u,p\q:r'; touch 'a,b\c:d/f'
				$S --pipe "--overlay=$W/a,b\\\\c\\:d:$W/u,p\\\\q\\:r:/mnt" sh -c 'ls /mnt; touch /mnt/new'; ls u*`, out: []string{`^f$`, `^new$`}, stock: never},
			{name: "overlay with two paths", script: `mkdir -p 1 up; echo one >1/a; $S --pipe --overlay=$W/1:$W/up sh -c "cat $W/up/a; touch $W/up/b"; ls up`, out: []string{`^one$`, `^b$`}},
			{name: "overlay inside the image", script: `mkdir up; $S --pipe --overlay=+/etc:$W/up:/etc sh -c 'echo x >/etc/new; cat /etc/os-release'; cat up/new; [ ! -e $T/etc/new ]`, out: []string{`^ID=busybox`, `^x$`}},
			{name: "overlay onto a temporary directory", script: `mkdir 1; echo one >1/a; $S --pipe --overlay=$W/1::/mnt sh -c 'touch /mnt/b; ls /mnt'; ls 1 | grep b`, exit: 1, out: []string{`^a$`, `^b$`}},
			{name: "overlay in a user namespace", script: `mkdir 1 up; echo one >1/a; $S --pipe -U --overlay=$W/1:$W/up:/mnt sh -c 'cat /mnt/a'`, out: []string{`^one$`}},
			{name: "overlay-ro", script: `mkdir 1 2; echo one >1/a; echo two >2/b; $S --pipe --overlay-ro=$W/1:$W/2:/mnt sh -c 'cat /mnt/a /mnt/b; touch /mnt/c'`,
				exit: 1, out: []string{`^one$`, `^two$`, `Read-only`}},
			{name: "overlay of one path", script: `mkdir 1; $S --pipe --overlay=$W/1 true`, exit: 1},
			{name: "idmap", script: `mkdir d; touch d/x; chown 0:0 d d/x; $S --pipe -U --bind=$W/d:/mnt:idmap sh -c 'stat -c %u /mnt/x; touch /mnt/y'; stat -c %u d/y`, out: []string{`^0\n0$`}},
			{name: "noidmap", script: `mkdir d; touch d/x; $S --pipe -U --bind=$W/d:/mnt:noidmap stat -c %u /mnt/x`, out: []string{`^65534$`}},
			{name: "rootidmap", script: `mkdir d; touch d/x; chown 1234:1234 d d/x; $S --pipe -U --bind=$W/d:/mnt:rootidmap sh -c 'stat -c %u /mnt/x; touch /mnt/y; stat -c %u /mnt/y'; stat -c 'host %u' d/y`,
				out: []string{`^0\n0\nhost 1234$`}, stock: 257},
			{name: "rootidmap of root's files", script: `mkdir d; $S --pipe -U --bind=$W/d:/mnt:rootidmap touch /mnt/y; stat -c 'host %u' d/y`, out: []string{`^host 0$`}, stock: 257},
			{name: "owneridmap", script: `mkdir d; touch d/x; chown 1234:1234 d d/x; mkdir -p $T/mnt/o; chown 1000:1000 $T/mnt/o
				$S --pipe -U --bind=$W/d:/mnt/o:owneridmap sh -c 'stat -c %u /mnt/o/x'; $S --pipe -U --user=user --bind=$W/d:/mnt/o:owneridmap touch /mnt/o/y; stat -c 'host %u' d/y`,
				out: []string{`^1000$`, `^host 1234$`}, stock: 257},
			{name: "an option that is none", script: `mkdir d; $S --pipe --bind=$W/d:/mnt:wrong true`, exit: 1, out: []string{`wrong`}},
			{name: "a mount on the root", script: `cp -a $T other; $S --pipe --bind-ro=$W/other:/ sh -c 'cat /etc/os-release; touch /etc/x'`, exit: 1, out: []string{`^ID=busybox`, `Read-only`}},
			{name: "a link of the image leads nowhere else", script: `mkdir d; ln -sfn /etc $T/evil; $S --pipe --bind=$W/d:/evil/sub true; ls /etc/sub; rm -f $T/evil; rmdir $T/etc/sub`, out: []string{`cannot access '/etc/sub'`}},
		})
	})
}
