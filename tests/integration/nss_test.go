//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// stockModule puts stock's NSS module in the place of ours, and has it asked for users, too.
const stockModule = `
module=$(find /usr/lib -name libnss_mymachines.so.2.distrib)
[ -z "$module" ] || cp "$module" "${module%.distrib}.new"
[ -z "$module" ] || mv "${module%.distrib}.new" "${module%.distrib}"
sed -i 's/^\(passwd\|group\):.*/\1: files mymachines systemd/' /etc/nsswitch.conf
`

// TestStockModule: stock's libnss_mymachines.so.2, which asks on the bus and
// reads state files, finds with our daemon what it finds with stock's; so does
// nss-systemd, which asks over varlink.
func TestStockModule(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.Shell(t, stockModule)
		bootMachine(t, h, "deb")
		h.Shell(t, `for class in container vm; do
	setsid sleep 1000000 >/dev/null 2>&1 </dev/null &
	busctl -q call `+busName+` `+busPath+` `+managerIf+` CreateMachine 'sayssusa(sv)' its-$class 0 test $class $! / 0
done`)
		leader := strings.TrimSpace(h.MustRun(t, "machinectl", "show", "deb", "-p", "Leader", "--value"))
		shift := strings.TrimSpace(h.MustRun(t, "stat", "-c", "%u", "/proc/"+leader))
		var base int
		if _, err := fmt.Sscan(shift, &base); err != nil || base < 65536 {
			t.Fatalf("UID of the leader: %q: %v", shift, err)
		}
		host.Eventually(t, 60*time.Second, func() error { // until there are addresses of both families
			return exitError(h.Try("sh", "-c", "getent ahostsv4 deb && getent ahostsv6 deb | grep fe80::"))
		})
		user := func(n int) string {
			return fmt.Sprintf("vu-deb-%d:x:%d:65534:UID %d of Container deb:/:/usr/sbin/nologin\n", n, base+n, n)
		}
		group := func(n int) string { return fmt.Sprintf("vg-deb-%d:x:%d:\n", n, base+n) }
		for _, c := range []struct {
			query, want string // want in whole lines; a pattern if it begins with ^
			exit        int
		}{
			{query: "hosts deb", want: `^fe80::\S+ +deb\n$`},
			{query: "ahosts deb", want: `^fe80::\S+%\d+ +STREAM `}, // the C library decides on the order
			{query: "ahostsv4 deb", want: `^\d+\.\d+\.\d+\.\d+ +STREAM deb\n`},
			{query: "ahostsv6 deb", want: `^fe80::\S+ +STREAM deb\n`},
			{query: "hosts nope", exit: 2},
			{query: "hosts .host", exit: 2},
			{query: "ahosts its-container", exit: 2}, // it has the host's network
			{query: "ahosts its-vm", exit: 2},
			{query: "passwd vu-deb-0", want: user(0)},
			{query: "passwd vu-deb-1000", want: user(1000)},
			{query: "passwd " + fmt.Sprint(base), want: user(0)},
			{query: "passwd " + fmt.Sprint(base+65534), want: user(65534)},
			{query: "passwd " + fmt.Sprint(base+65535), exit: 2}, // no one's
			{query: "passwd " + fmt.Sprint(base+65536), exit: 2},
			{query: "passwd vu-deb-65535", exit: 2},
			{query: "passwd vu-deb-65536", exit: 2},
			{query: "passwd vu-deb-4294967296", exit: 2},
			{query: "passwd vu-its-vm-0", exit: 2},
			{query: "passwd vu-nope-0", exit: 2},
			{query: "passwd vu-deb-", exit: 2},
			{query: "group vg-deb-0", want: group(0)},
			{query: "group " + fmt.Sprint(base+7), want: group(7)},
			{query: "group vg-deb-01", exit: 2},
			{query: "group vg--0", exit: 2},
		} {
			t.Run(c.query, func(t *testing.T) {
				r := h.Try(append([]string{"getent"}, strings.Fields(c.query)...)...)
				switch {
				case r.Exit != c.exit:
					t.Error(r)
				case strings.HasPrefix(c.want, "^"):
					match(t, r.Stdout, c.want)
				case r.Stdout != c.want:
					t.Errorf("got %q, want %q", r.Stdout, c.want)
				}
			})
		}
		match(t, h.MustRun(t, "ping", "-c", "1", "-W", "2", "deb"), `1 received`)
		if t.Failed() || h.Impl != host.Ours {
			return
		}
		// The daemon is gone: the module says so at once, and finds all again when it is back.
		h.Shell(t, "systemctl restart systemd-machined.service; getent hosts deb; getent passwd vu-deb-0")
	})
}
