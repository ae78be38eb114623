//go:build integration

package integration

import (
	"regexp"
	"strings"
	"testing"

	"machined/tests/host"
)

// TestRootsBindUser lets users of the host into machines: what they find there,
// and who is refused.
func TestRootsBindUser(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		h.BusyboxTree(t, "bb")
		h.Shell(t, `
useradd -m -d /var/tmp/joe -s /bin/bash joe; echo 'joe:$y$j9T$abc$def' | chpasswd -e
useradd -m -s /bin/sh ann
useradd -m -N grouped
ls -lan /home/ann >/root/before`)
		table := []struct {
			name, script string // $S is the spawner, $D what shows the machine's view
			exit         int
			out          []string
			ours         bool
		}{
			{
				"records", `$S -U --bind-user=joe sh -c "$D"`, 0, []string{
					`^joe.user \{"userName":"joe","uid":60514,"gid":60514,"homeDirectory":"/run/host/home/joe","service":"io.systemd.NSpawn"\}\r?$`,
					`^joe.group \{"groupName":"joe","gid":60514,"service":"io.systemd.NSpawn"\}\r?$`,
					`^joe.user-privileged \{"privileged":\{"hashedPassword":\["\$y\$j9T\$abc\$def"\]\}\}\r?$`,
					`^mode 600 0 0 joe.user-privileged`, `^mode 644 0 0 joe.user\b`, `^60514.user joe.user\r?$`, `^60514.group joe.group\r?$`,
					`^home 60514 60514 7\d\d /run/host/home/joe`,
				}, false,
			},
			{
				"a home that no mount can map", `$S -U --bind-user=ann sh -c "$D"`, 0,
				[]string{`^home 60514 60514 7\d\d /run/host/home/ann`, `^home 60514 60514 644 /run/host/home/ann/.profile`}, false,
			},
			{
				"two of them, once each", `$S -U --bind-user=joe --bind-user=ann --bind-user=joe sh -c "$D"`, 0,
				[]string{`^60514.user joe.user\r?$`, `^60515.user ann.user\r?$`, `^home 60515 60515 7\d\d /run/host/home/ann`}, false,
			},
			{"what is written", `$S -U --bind-user=joe --user=root sh -c 'touch /run/host/home/joe/by-root'; stat -c %U /var/tmp/joe/by-root | grep -v ^root; rm /var/tmp/joe/by-root`, 0, []string{`^`}, false},
			{
				"shell", `$S -U --bind-user=joe --bind-user=ann --bind-user-shell=yes sh -c "$D"`, 0,
				[]string{`^joe.user .*"shell":"/bin/bash"`, `^ann.user .*"shell":"/bin/sh"`}, true,
			},
			{"one shell", `$S -U --bind-user=joe --bind-user-shell=/bin/ash sh -c "$D"`, 0, []string{`^joe.user .*"shell":"/bin/ash"`}, true},
			{"no such shell option", `$S -U --bind-user=joe --bind-user-shell=bad true`, 1, []string{`bad`}, false},
			{"groups", `$S -U --bind-user=joe --bind-user-group=wheel sh -c 'ls -1 /run/host/userdb'`, 0, []string{`^joe:wheel\.membership\r?$`}, true},
			{"without private users", `$S --bind-user=joe sh -c "$D"`, 0, []string{`^home 60514 60514 7\d\d /run/host/home/joe`}, true},
			{"file", `mkdir -p /run/systemd/nspawn; printf '[Files]\nBindUser=\nBindUser=joe\n' >/run/systemd/nspawn/bb.nspawn; $S -U sh -c "$D"; rm /run/systemd/nspawn/bb.nspawn`, 0, []string{`^home 60514 60514 7\d\d /run/host/home/joe`}, false},
			{"untrusted file", `printf '[Files]\nBindUser=joe\n' >/var/lib/machines/bb.nspawn; $S -U sh -c 'ls /run/host/home' 2>&1; rm /var/lib/machines/bb.nspawn`, 0, []string{`^`}, true},
			{"root", `$S -U --bind-user=root true`, 1, []string{`Mapping 'root' user not supported`}, false},
			{"nobody", `$S -U --bind-user=nobody true`, 1, []string{`Mapping 'nobody' user not supported`}, false},
			{"nobody knows", `$S -U --bind-user=nosuch true`, 1, []string{`Failed to resolve user 'nosuch'`}, false},
			{"no name", `$S -U --bind-user= true`, 1, []string{`Invalid user name to bind`}, false},
			{"shared group", `$S -U --bind-user=grouped true`, 1, []string{`mapping users without private groups`}, false},
			{"in the range", `$S --private-users=identity --bind-user=joe true`, 1, []string{`UID of user 'joe' to map is already in container UID range`}, false},
			{"range too small", `$S --private-users=131072:1000 --bind-user=joe true`, 1, []string{`No suitable available UID in range 60514.60577`}, false},
			{"same user inside", `echo joe:x:5:5::/:/bin/sh >>/var/lib/machines/bb/etc/passwd; $S -U --bind-user=joe true; e=$?; sed -i '$d' /var/lib/machines/bb/etc/passwd; exit $e`, 1, []string{`the user 'joe' already exists`}, false},
			{"same group inside", `echo joe:x:5: >>/var/lib/machines/bb/etc/group; $S -U --bind-user=joe true; e=$?; sed -i '$d' /var/lib/machines/bb/etc/group; exit $e`, 1, []string{`the group 'joe' already exists`}, false},
			{"taken number", `echo x:x:60514: >>/var/lib/machines/bb/etc/group; $S -U --bind-user=joe sh -c "$D"; e=$?; sed -i '$d' /var/lib/machines/bb/etc/group; exit $e`, 0, []string{`^60515.user joe.user\r?$`}, false},
		}
		const view = `D='cd /run/host/userdb; for f in *; do [ -L $f ] && { echo $f $(readlink $f); continue; }; echo $f $(cat $f); stat -c "mode %a %u %g %n" $f; done; find /run/host/home -mindepth 1 -exec stat -c "home %u %g %a %n" {} +'; S='systemd-nspawn -q -M bb'; `
		for _, c := range table {
			t.Run(c.name, func(t *testing.T) {
				if c.ours && h.Impl != host.Ours {
					t.Skip("stock of this host has no such thing")
				}
				r := h.Try("bash", "-c", view+c.script)
				if r.Exit != c.exit {
					t.Fatalf("want exit %d; got %v", c.exit, r)
				}
				for _, p := range c.out {
					if !regexp.MustCompile("(?m)" + p).MatchString(r.Output()) {
						t.Errorf("no %q in %v", p, r)
					}
				}
				if c.name == "untrusted file" && strings.Contains(r.Stdout, "joe") {
					t.Errorf("an untrusted file bound a user: %v", r)
				}
			})
		}
		h.Shell(t, `ls -lan /home/ann | diff /root/before -; ! ls /var/lib/machines/bb/run/host 2>/dev/null`)
		unchanged(t, h, before)
	})
}
