//go:build integration

package integration

import (
	"regexp"
	"strings"
	"testing"

	"machined/tests/host"
)

// TestRootsOwnership has the ways in which the owners on disk become the machine's.
func TestRootsOwnership(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		h.BusyboxTree(t, "bb")
		for _, c := range []struct {
			name, owner, args string // owner: of the tree before
			exit              int
			out               []string // of the machine, and the tree's owners afterwards
			stock             bool
		}{
			{"map", "0", "--private-users=131072 --private-users-ownership=map", 0, []string{`^inside 0 0$`, `^disk 0 0$`}, true},
			{"auto maps", "0", "-U", 0, []string{`^inside 0 0$`, `^disk 0 0$`}, true},
			{"auto takes the tree's range", "655360", "-U", 0, []string{`^base 655360$`, `^inside 0 0$`, `^disk 655360 655360$`}, true},
			{"yes takes the tree's range", "655360", "--private-users=yes", 0, []string{`^base 655360$`, `^inside 0 0$`, `^disk 655360 655360$`}, true},
			{"auto rewrites another range", "655360", "--private-users=131072 --private-users-ownership=auto", 0, []string{`^inside 0 0$`, `^disk 131072 131072$`}, false},
			{"chown", "0", "--private-users=131072 --private-users-ownership=chown", 0, []string{`^inside 0 0$`, `^disk 131072 131072$`}, true},
			{"chown back", "131072", "--private-users=0 --private-users-ownership=chown", 0, []string{`^inside 0 0$`, `^disk 0 0$`}, false},
			{"off", "0", "--private-users=131072 --private-users-ownership=off", 0, []string{`^inside 65534 `, `^disk 0 131072$`}, false},
			{"auto, foreign", "2147352576", "-U", 0, []string{`^inside 0 0$`, `^disk 2147352576 2147352576$`}, false},
			{"foreign", "2147352576", "--private-users=131072 --private-users-ownership=foreign", 0, []string{`^base 131072$`, `^inside 0 0$`, `^disk 2147352576 2147352576$`}, false},
			{"foreign, but it is not", "0", "-U --private-users-ownership=foreign", 1, []string{`foreign range`, `^disk 0 none$`}, false},
			{"chown to no range", "0", "--private-users=131073:65536 --private-users-ownership=chown", 1, []string{`only supported for UID/GID ranges starting at multiples of 2\^16`, `^disk 0 none$`}, true},
			{"chown to a small range", "0", "--private-users=131072:1000 --private-users-ownership=chown", 1, []string{`only supported for UID/GID ranges`, `^disk 0 none$`}, true},
			{"chown and read-only", "0", "-U --private-users-ownership=chown --read-only", 1, []string{`--read-only and --private-users-ownership=chown may not be combined`}, true},
			{"nonsense", "0", "--private-users-ownership=nonsense", 1, []string{`nonsense`}, true},
		} {
			t.Run(c.name, func(t *testing.T) {
				if h.Impl == host.Stock && !c.stock {
					t.Skip("stock of these hosts has no such thing, or another view of it")
				}
				h.Shell(t, "chown -R "+c.owner+":"+c.owner+" /var/lib/machines/bb; chmod 777 /var/lib/machines/bb/etc")
				r := h.Try("bash", "-c", "systemd-nspawn -q --pipe -M bb "+c.args+` sh -c 'touch /etc/new; echo base $(awk "{print \$2; exit}" /proc/self/uid_map); echo inside $(stat -c %u /bin/busybox /etc/new)'; e=$?
cd /var/lib/machines/bb; echo disk $(stat -c %u bin/busybox) $(stat -c %u etc/new 2>/dev/null || echo none); rm -f etc/new; exit $e`)
				if r.Exit != c.exit {
					t.Fatalf("want exit %d; got %v", c.exit, r)
				}
				for _, p := range c.out {
					if !regexp.MustCompile("(?m)" + p).MatchString(strings.ReplaceAll(r.Output(), "\r", "")) {
						t.Errorf("no %q in %v", p, r)
					}
				}
			})
		}
		unchanged(t, h, before)
	})
}
