//go:build integration

package integration

import (
	"testing"

	"machined/tests/host"
)

// TestNspawnRoots has the ways to a machine's root, and what is left of changes to it.
func TestNspawnRoots(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		nspawnRows(t, h, []nspawnRow{
			{name: "template is copied once", script: `N="systemd-nspawn -q --register=no --pipe"
				$N --template=$T -D $W/new sh -c 'echo mine >/etc/mark; cat /etc/os-release'; [ -e new/etc/mark ] && [ ! -e $T/etc/mark ]
				$N --template=$T -D $W/new cat /etc/mark`, out: []string{`^ID=busybox`, `^mine$`}},
			{name: "template by name of an image", script: `systemd-nspawn -q --register=no --pipe --template=bb -M fresh cat /etc/os-release; ls /var/lib/machines; rm -rf /var/lib/machines/fresh`,
				out: []string{`^ID=busybox`, `^fresh$`}, stock: never},
			{name: "template with an image", script: `systemd-nspawn -q --register=no --template=$T -i $W/x.raw true`, exit: 1},
			{name: "template that is not there", script: `systemd-nspawn -q --register=no --template=$W/none -D $W/new true; e=$?; ls -A; exit $e`, exit: 1, not: []string{`^new$`}},
			{name: "ephemeral", script: `$S --pipe -x sh -c 'echo x >/etc/gone; cat /etc/gone'; [ ! -e $T/etc/gone ]; ls -A /var/lib/machines`,
				out: []string{`^x$`}, not: []string{`\.#`}},
			{name: "ephemeral of a template", script: `systemd-nspawn -q --register=no --pipe -x --template=$T sh -c 'echo x >/etc/gone; cat /etc/gone'; [ ! -e $T/etc/gone ]`, out: []string{`^x$`}},
			{name: "ephemeral in a user namespace", script: `$S --pipe -x -U sh -c 'echo x >/etc/gone; stat -c %u /etc/gone /bin/sh'; [ ! -e $T/etc/gone ]`, out: []string{`^0\n0$`}},
			{name: "ephemeral name", script: `$S --pipe -x hostname`, out: []string{`^bb-[0-9a-f]{16}$`}},
			{name: "ephemeral of the host", script: `systemd-nspawn -q --register=no --pipe -D / --volatile=yes sh -c 'touch /x; ls /usr/bin/systemd-nspawn'; [ ! -e /x ]`, out: []string{`^/usr/bin/systemd-nspawn$`}},
			{name: "the host itself", script: `systemd-nspawn -q --register=no -D / true`, exit: 1},
			{name: "read-only", script: `$S --pipe --read-only sh -c 'touch /etc/x; touch /tmp/x && echo tmp'; [ ! -e $T/etc/x ]`, out: []string{`Read-only file system`, `^tmp$`}},
			{name: "read-only in a user namespace", script: `$S --pipe --read-only -U touch /etc/x`, exit: 1, out: []string{`Read-only`}},
			{name: "image", script: `truncate -s 160M i.raw; mkfs.btrfs -q --rootdir $T i.raw; N="systemd-nspawn -q --register=no --pipe -i $W/i.raw"
				$N sh -c 'cat /etc/os-release; echo kept >/etc/mark'; $N cat /etc/mark; $N --read-only touch /etc/x; $N -x sh -c 'echo gone >/etc/mark'; $N cat /etc/mark`,
				out: []string{`^ID=busybox`, `^kept\n(.|\n)*^kept$`, `Read-only`}, not: []string{`^gone$`}},
			{name: "volatile=yes has no machine id of the image", script: `cp -a $T v; cd v; for d in bin sbin; do cp -a $d/. usr/$d/; rm -r $d; ln -s usr/$d $d; done; echo 11111111222233334444555566667777 >etc/machine-id
				systemd-nspawn -q --register=no --pipe --volatile=yes --uuid=aaaaaaaa111142228333444455556666 -D $W/v sh -c 'echo $container_uuid'`, out: []string{`^aaaaaaaa-1111-4222-8333-444455556666$`}},
			{name: "volatile=overlay read-only", script: `$S --pipe --volatile=overlay --read-only sh -c 'touch /x && echo written'; [ ! -e $T/x ]`, out: []string{`^written$`}},
			{name: "a link to nothing for what is bound", script: `ln -sfn ../run/not/there $T/etc/resolv.conf; $S --pipe --resolv-conf=bind-host grep -c . /etc/resolv.conf; rm $T/etc/resolv.conf`,
				out: []string{`^[1-9]`}},
			{name: "reboots", script: `for o in "" "-U -n" "-U --register=yes"; do
				$S $o --pipe sh -c 'n=$(cat /count || echo 0); echo $((n+1)) >/count; [ -O /count ] || echo foreign; [ $n -ge 2 ] && poweroff -f; reboot -f; sleep 5' 2>/dev/null && echo "$o: $(cat $T/count 2>/dev/null)"; rm -f $T/count; done`,
				out: []string{`^: 3$`, `^-U -n: 3$`, `^-U --register=yes: 3$`}, not: []string{`foreign`}},
			{name: "what is left after a reboot", script: rebootScript + `for o in "-x" "-x -U" "-x -U -n" "-x --bind=:/mnt/t" "-U --bind=:/mnt/t" "--tmpfs=/mnt/t" "--volatile=state" "--volatile=overlay" "--overlay=+/etc::/etc"; do reboots "$o" 0; done; ls -A $W /var/tmp`,
				out: []string{
					`^-x: , root etc same, root etc same$`, `^-x -U: , root etc same, root etc same$`, `^-x -U -n: , root etc same, root etc same$`,
					`^-x --bind=:/mnt/t: , root etc mnt/t same, root etc mnt/t same$`, `^-U --bind=:/mnt/t: , root etc mnt/t same, root etc mnt/t same$`,
					`^--tmpfs=/mnt/t: , root etc same, root etc same$`, `^--volatile=state: , same, same$`, `^--volatile=overlay: , same, same$`,
					`^--overlay=\+/etc::/etc: , root etc same, root etc same$`,
				}, not: []string{`\.#`, `nspawn-temp`}},
			{name: "what is left after a reboot of a machine that was at rest", script: rebootScript + `reboots "-x -U --bind=:/mnt/t --register=yes" 3; ls -A $W /var/tmp`,
				out: []string{`^-x -U --bind=:/mnt/t --register=yes: , root etc mnt/t same, root etc mnt/t same$`}, not: []string{`\.#`, `nspawn-temp`}},
			{name: "what is left in an image after a reboot", script: rebootScript + `truncate -s 160M m.raw; mkfs.btrfs -q --rootdir $T m.raw; reboots "-x" 0 "-i m.raw"; ls -A $W /var/tmp`,
				out: []string{`^-x: , root etc same, root etc same$`}, not: []string{`\.#`}},
			{name: "properties of the scope", script: `systemd-nspawn -q -M props -D $T --pipe --property=IPAddressDeny=any --property=IPAddressAllow=192.0.2.0/24 --property=TimeoutStopSec=1min\ 3s --property=MemoryHigh=1G sleep 4 & sleep 2
				systemctl show machine-props.scope -p IPAddressDeny -p IPAddressAllow -p TimeoutStopUSec -p MemoryHigh; wait`,
				out: []string{`^IPAddressDeny=(0.0.0.0/0 ::/0|::/0 0.0.0.0/0)$`, `^IPAddressAllow=192.0.2.0/24$`, `^TimeoutStopUSec=1min 3s$`, `^MemoryHigh=1073741824$`}},
			{name: "volatile=yes", script: `cp -a $T v; cd v; for d in bin sbin; do cp -a $d/. usr/$d/; rm -r $d; ln -s usr/$d $d; done
				systemd-nspawn -q --register=no --pipe --volatile=yes -D $W/v sh -c 'ls -A /etc /home; touch /usr/x; touch /var/y /z && echo fresh'; ls -A $W/v`,
				out: []string{`Read-only`, `^fresh$`}, not: []string{`^passwd$`, `^user$`, `^z$`}},
			{name: "volatile=yes of an image of nothing but /usr", script: `mkdir v; cp -a $T/usr v/; for d in bin sbin; do mkdir -p v/usr/$d; cp -a $T/$d/. v/usr/$d/; done
				systemd-nspawn -q --register=no --pipe --volatile=yes -D $W/v sh -c 'readlink /bin; grep -c " /etc/resolv.conf " /proc/self/mountinfo; [ -s /etc/resolv.conf ] && echo file'; ls -A $W/v`,
				out: []string{`^usr/bin\n0\nfile\nusr$`}},
			{name: "journal of an init lasts", script: `cp -a $T v; rm -rf v/var/log v/sbin/init; printf '#!/bin/sh\nstat -c %%u:%%a /var/log/journal\n' >v/sbin/init; chmod +x v/sbin/init
				for o in "" -U --link-journal=no --read-only; do rm -rf v/var/log; systemd-nspawn -q --register=no -b $o -D $W/v; ls v/var/log 2>/dev/null; done; true`,
				out: []string{`^0:755\r\njournal\n0:755\r\njournal\nstat: .*\r\nstat: .*$`}},
			{name: "read-only is not written to", script: `cp -a $T v; rm -f v/etc/resolv.conf v/etc/localtime; tree() { find v -printf '%p %l %T@\n' | sort; }; systemd-nspawn -q --register=no --pipe -D $W/v --resolv-conf=off --timezone=off true; tree >before
				for o in "" -U --resolv-conf=copy-host --resolv-conf=replace-host --resolv-conf=bind-host --timezone=copy --timezone=symlink --timezone=bind --timezone=delete --link-journal=try-host --link-journal=try-guest; do
					systemd-nspawn -q --uuid=aaaaaaaa111142228333444455556666 --register=no --pipe --read-only $o -D $W/v true 2>/dev/null; tree | diff before - || echo changed by $o; done; echo done`,
				out: []string{`^done$`}, not: []string{`changed`}},
			{name: "no mount point is made in a read-only root", script: `touch $W/f; for o in --read-only --volatile=state; do for m in --bind=/usr/share:/new1 --bind=$W/f:/new2 --tmpfs=/new3 --overlay=+/etc::/new4; do $S --pipe $o $m true; echo $?; done; $S --pipe $o --tmpfs=/var --bind=/usr/share:/var/new ls -d /var/new; done; find $T -maxdepth 1 -name 'new*'`,
				out: []string{`^/var/new$`}, not: []string{`^0$`, `bb/new`}},
			{name: "time zone over a link of the image's", script: `cp -a $T v; for o in copy bind; do ln -sf /run/none v/etc/localtime; systemd-nspawn -q --register=no --pipe --timezone=$o -D $W/v cat /etc/localtime | cmp - /etc/localtime && echo same; done`,
				out: []string{`^same\nsame$`}},
			{name: "volatile=yes without merged /usr", script: `$S --volatile true`, exit: 1, out: []string{`not supported`}},
			{name: "volatile=state", script: `touch $T/var/lib/keep; $S --pipe --volatile=state sh -c 'ls /var/lib/keep; touch /etc/x; touch /var/lib2 && echo var; cat /etc/os-release'; ls $T/var`,
				out: []string{`No such file`, `Read-only`, `^var$`, `^ID=busybox`}, not: []string{`^lib2$`}},
			{name: "volatile=overlay", script: `$S --pipe --volatile=overlay sh -c 'cat /etc/os-release; echo x >/etc/ov; touch /var/ov; cat /etc/ov; stat -c %a /'; [ ! -e $T/etc/ov ] && [ ! -e $T/var/ov ]`,
				out: []string{`^ID=busybox`, `^x$`, `^755$`}},
			{name: "volatile=overlay in a user namespace", script: `$S --pipe -U --volatile=overlay sh -c 'echo x >/etc/ov; stat -c %u /etc/ov /bin/sh /'; [ ! -e $T/etc/ov ]`, out: []string{`^0\n0\n0$`}},
			{name: "volatile help", script: `systemd-nspawn --volatile=help`, out: []string{`^yes$`, `^no$`, `^state$`, `^overlay$`}},
			{name: "volatile nonsense", script: `for v in "" -1 sometimes; do $S --volatile="$v" true && exit 7; done; exit 0`},
			{name: "pivot-root", script: `cp -a $T p; mkdir p/sub p/old p/sub/old; cp -a $T/. p/sub/; echo inner >p/sub/etc/which; systemd-nspawn -q --register=no --pipe -D $W/p --pivot-root=/sub:/old sh -c 'cat /etc/which; ls /old/etc/os-release'`,
				out: []string{`^inner$`, `^/old/etc/os-release$`}, stock: 257},
			{name: "no os-release", script: `cp -a $T o; rm o/etc/os-release o/usr/lib/os-release; N="systemd-nspawn -q --register=no -D $W/o"
				$N -b; echo boot $?; $N --pipe true; echo run $?`,
				out: []string{`^boot 1$`, `os-release`, `^run 0$`}},
			{name: "no os-release, and that is known", script: `cp -a $T o; rm o/etc/os-release o/usr/lib/os-release; printf '#!/bin/sh\necho init runs as $$\n' >o/sbin/init
				SYSTEMD_NSPAWN_CHECK_OS_RELEASE=0 systemd-nspawn -q --register=no -D $W/o --pipe -b`, out: []string{`^init runs as 1$`}, stock: 257},
			{name: "not even /usr", script: `mkdir e; systemd-nspawn -q --register=no -D $W/e true`, exit: 1, out: []string{`usr`}},
			{name: "an image that is in use", script: `mkfifo in; $S -M one --pipe sh -c 'echo up; read x' <in >out & exec 3>in
				until grep -q up out; do :; done; $S -M two true; echo two $?; $S -M two --read-only --pipe true; echo ro $?; echo >&3; wait`, out: []string{`^two 1$`, `busy|locked`, `^ro 1$`}},
			{name: "an image in use that is only read", script: `mkfifo in; $S -M one --read-only --pipe sh -c 'echo up; read x' <in >out & exec 3>in
				until grep -q up out; do :; done; $S -M two --read-only true; echo two $?; echo >&3; wait`, out: []string{`^two 0$`}},
		})
	})
}

// TestNspawnEphemeralSettings finds the settings of an ephemeral machine by its
// name without the random part, unless it was given another.
func TestNspawnEphemeralSettings(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.WriteFile(t, "/run/systemd/nspawn/bb.nspawn", "[Exec]\nEnvironment=FROM=file\n", 0o644)
		h.WriteFile(t, "/run/systemd/nspawn/bb-x.nspawn", "[Exec]\nEnvironment=FROM=other\n", 0o644)
		nspawnRows(t, h, []nspawnRow{
			{name: "without suffix", script: `$S -x --pipe sh -c 'echo from [$FROM]'`, out: []string{`^from .file.$`}},
			{name: "under another name", script: `$S -x -M else --pipe sh -c 'echo from [$FROM]'`, out: []string{`^from ..$`}},
			{name: "under a name that has one", script: `$S -x -M bb-x --pipe sh -c 'echo from [$FROM]'`, out: []string{`^from .other.$`}},
			{name: "Ephemeral= in it", script: `printf '[Exec]\nEphemeral=yes\n' >/run/systemd/nspawn/bb.nspawn; $S --pipe sh -c 'echo x >/etc/eph; cat /etc/eph'; [ ! -e $T/etc/eph ]`, out: []string{`^x$`}},
		})
	})
}

// rebootScript has reboots OPTIONS SECONDS [ROOT], which has a machine reboot after that time and once more, and tells what
// files of the run before and the first ID it has each time.
const rebootScript = `reboots() {
	rm -rf $W/m $W/c; cp -a $T $W/m; mkdir $W/c $W/m/c; chmod 777 $W/c
	systemd-nspawn -q --register=no ${3:--D $W/m} $1 --bind=$W/c:/c --pipe sh -c '
		for d in root etc mnt/t; do [ -e /$d/mark ] && echo -n "$d "; touch /$d/mark; done >>/c/out 2>/dev/null
		[ -e /c/id ] || echo "$container_uuid" >/c/id; [ -e /c/1 ] && [ "$(cat /c/id)" = "$container_uuid" ] && echo -n same >>/c/out
		[ -e /c/2 ] && poweroff -f; echo -n ", " >>/c/out; [ -e /c/1 ] && >/c/2; >/c/1; [ -e /c/2 ] || sleep '$2'; reboot -f; sleep 5' >/dev/null 2>&1
	echo "$1: $(cat $W/c/out)"
}
`
