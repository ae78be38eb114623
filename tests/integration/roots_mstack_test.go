//go:build integration

package integration

import (
	"regexp"
	"testing"

	"machined/tests/host"
)

// TestRootsStack runs machines from mount stacks, which stock of these hosts has not.
func TestRootsStack(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		h.BusyboxTree(t, "low")
		h.Shell(t, `
cd /var/lib/machines/low; mkdir -p config var/config writable shared usr/bin; echo low >shared/low; echo low >which
rm -f usr/bin/*; for d in bin sbin; do cp -a $d/. usr/$d/; rm -r $d; ln -s usr/$d $d; done
mkdir -p /var/tmp/s /var/tmp/l1/shared /var/tmp/l10 /var/tmp/conf /var/tmp/data; cd /var/tmp
echo l1 >l1/shared/l1; echo l1 >l1/which; echo l10 >l10/which; echo conf >conf/file; echo data >data/file
ln -s /var/lib/machines/low s/layer@0; ln -s ../l10 s/layer@10; ln -s ../l1 s/layer@9
ln -s ../conf s/robind@config; ln -s ../conf s/robind@var-config; ln -s ../data s/bind@writable`)
		const view = `for p in / /var /usr /config /var/config /writable /extra; do m=$(awk -v p=$p '$5==p{for(i=7;$i!="-";i++); t=$(i+1)} END{print t}' /proc/self/mountinfo); w=ro; touch $p/.w 2>/dev/null && w=rw && rm $p/.w; echo "$p $w $m"; done; echo which $(cat /which) shared $(ls /shared); echo conf $(cat /config/file /var/config/file) $(cat /writable/file)`
		binds := []string{`^/config ro .`, `^/var/config ro .`, `^conf conf conf data$`}
		for _, c := range []struct {
			name, script string // $S is the spawner, $V the view
			exit         int
			out          []string
		}{
			{"read-only without rw", `$S sh -c "$V"`, 0, append(binds, `^/ ro overlay$`, `^/writable rw .`, `^which l10 shared l1 low$`)},
			{"--read-only", `$S --read-only sh -c "$V"`, 0, append(binds, `^/ ro overlay$`, `^/writable ro .`)},
			{"--volatile", `$S --volatile sh -c "$V"`, 0, append(binds, `^/ rw tmpfs$`, `^/usr ro overlay$`, `^/writable rw .`, `^which shared$`)},
			{"--volatile=overlay", `$S --volatile=overlay sh -c "$V"`, 0, append(binds, `^/ rw overlay$`, `^/writable rw .`, `^which l10 shared`)},
			{"--volatile=state", `$S --volatile=state sh -c "$V"`, 0, append(binds, `^/ ro overlay$`, `^/var rw tmpfs$`, `^which l10`)},
			{"writable", `mkdir s/rw; $S sh -c "$V; echo kept >/mine; rm /shared/low"; $S sh -c 'cat /mine; ls /shared'; ls s/rw/data; ls /var/lib/machines/low/shared; rm -r s/rw`, 0,
				[]string{`^/ rw overlay$`, `^which l10 shared l1 low$`, `^kept$\n^l1$\n`, `^mine$`, `^low$`}},
			{"root below the layers", `mkdir -p r/etc s/rw; echo r >r/etc/from-root; echo r >r/which; ln -s ../r s/root; $S sh -c 'cat /etc/from-root /which; echo x >/etc/new'; ls r/etc; $S cat /etc/new; rm -r s/rw s/root`, 0,
				[]string{`^r\nl10$`, `^from-root$\n^x$`}},
			{"memory", `mkdir s/tmpfs@extra s/tmpfs@var-deep-down; $S sh -c "$V; touch /extra/x /var/deep/down/x && stat -c %a /var/deep/down"; $S ls /extra; rmdir s/tmpfs@*`, 0, []string{`^/ ro overlay$`, `^/extra rw tmpfs$`, `^755$`}},
			{"a disk image", `mksquashfs conf conf.sq -quiet -no-progress >/dev/null; ln -s ../conf.sq s/layer@3.raw; $S cat /file; rm s/layer@3.raw`, 0, []string{`^conf$`}},
			{"no place for a bind", `ln -s ../data s/bind@no-such-place; $S true; e=$?; rm s/bind@no-such-place; exit $e`, 1, []string{`Failed to create.*root is read-only`}},
			{"what is no entry", `mkdir s/layers; $S true; e=$?; rmdir s/layers; exit $e`, 1, []string{`"layers" in mount stack`}},
			{"empty", `mkdir -p none; systemd-nspawn -q --mstack=none true`, 1, []string{`has no layer`}},
			{"name", `ln -s s web.mstack; systemd-nspawn -q --pipe --mstack=web.mstack hostname; rm web.mstack`, 0, []string{`^web$`}},
			{"with private users", `mkdir s/rw; $S -U sh -c 'stat -c %u:%g / /which /shared/low /config/file; echo x >/writable/new; echo x >/mine; rm /shared/low; chown 5:6 /shared'
stat -c %u:%g s/rw/data/mine data/new; stat -c %u:%g s/rw/data/shared; $S -U ls /shared; ls /var/lib/machines/low/shared; rm -r s/rw data/new`, 0,
				[]string{`\A(0:0\n){6}5:6\nl1\nlow\n\z`}},
			{"with private users, read-only", `$S -U sh -c 'stat -c %u:%g / /which /tmp; touch /x || awk "\$5==\"/\"{print \$4, \$9}" /proc/self/mountinfo'`, 0, []string{`^0:0\n0:0\n0:0$`}},
			{"with private users, owned by them", `$S -U --private-users-ownership=chown true`, 1, []string{`--mstack=.*--private-users-ownership=chown`}},
			{"many layers", `mkdir -p many; for i in $(seq 60); do mkdir many/layer@$i; echo $i >many/layer@$i/file; echo $i >many/layer@$i/f$i; done
ln -s /var/lib/machines/low many/layer@0; systemd-nspawn -q --pipe -U --mstack=many sh -c 'cat /file; ls /f* | wc -l'; rm -r many`, 0, []string{`^60\n61$`}},
			{"a program alone", `mkdir -p alone/layer@0; cp -aL /var/lib/machines/low/usr/bin/busybox alone/layer@0/; systemd-nspawn -q --pipe -U --mstack=alone --user=1234:77 /busybox id; rm -r alone`, 0,
				[]string{`^uid=1234 gid=77`}},
			{"with a directory", `$S -D / true`, 1, []string{`--mstack=.*--directory=`}},
		} {
			t.Run(c.name, func(t *testing.T) {
				r := h.Try("bash", "-c", "cd /var/tmp; S='systemd-nspawn -q --pipe --mstack=s'; V='"+regexp.MustCompile(`'`).ReplaceAllString(view, `'"'"'`)+"'; "+c.script)
				if r.Exit != c.exit {
					t.Fatalf("want exit %d; got %v", c.exit, r)
				}
				for _, p := range c.out {
					if !regexp.MustCompile("(?m)" + p).MatchString(r.Output()) {
						t.Errorf("no %q in %v", p, r)
					}
				}
			})
		}
		unchanged(t, h, before)
	})
}
