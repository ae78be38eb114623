//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"

	"machined/tests/host"
)

// TestSettingsGuard: which settings of /proc/sys root of a machine that is the host's
// root can change, wherever it finds them. It writes to each what it is already.
func TestSettingsGuard(t *testing.T) {
	ours(t)
	t.Parallel()
	h := host.Boot(t, host.Config{Suite: host.Bookworm})
	h.BusyboxTree(t, "bb")
	const (
		hosts   = "kernel/core_pattern vm/swappiness kernel/panic"
		machine = "kernel/hostname kernel/domainname kernel/shmmax kernel/sem kernel/msgmni fs/mqueue/msg_max"
		network = "net/core/somaxconn"
	)
	h.WriteFile(t, "/var/lib/machines/bb/probe", fmt.Sprintf(`#!/bin/sh
mkdir -p /run/fresh && mount -t proc proc /run/fresh
mount -o remount,bind,rw /proc/sys
for top in /proc /run/fresh; do
	for s in %s %s %s; do
		v=$(cat $top/sys/$s) && echo "$v" 2>/dev/null >$top/sys/$s && echo $top/sys/$s
	done
done 2>/dev/null
exit 0
`, hosts, machine, network), 0o755)
	for _, c := range []struct{ name, env, flags, want string }{
		{"plain", "", "", machine},
		{"registered", "", "--register=yes", machine},
		{"stub init", "", "--as-pid2", machine},
		{"own network", "", "--private-network", machine + " " + network},
		{"network knob", "SYSTEMD_NSPAWN_API_VFS_WRITABLE=network", "", machine + " " + network},
		{"knob", "SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes", "", hosts + " " + machine + " " + network},
		{"network's administrator", "", "--capability=CAP_NET_ADMIN", machine + " " + network},
		{"modules", "", "--capability=CAP_SYS_MODULE", hosts + " " + machine + " " + network},
		{"host's IPC", "SYSTEMD_NSPAWN_SHARE_NS_IPC=yes", "", "kernel/hostname kernel/domainname"},
		{"host's root in a user namespace", "", "--private-users=identity --private-network", machine + " " + network},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := h.Shell(t, c.env+" systemd-nspawn -q --pipe --register=no "+c.flags+" -D /var/lib/machines/bb /probe </dev/null")
			var want strings.Builder
			for _, top := range []string{"/proc", "/run/fresh"} {
				for s := range strings.FieldsSeq(c.want) {
					want.WriteString(top + "/sys/" + s + "\n")
				}
			}
			if out != want.String() {
				t.Errorf("written to:\n%swant:\n%s", out, want.String())
			}
		})
	}
	// The host itself is not guarded.
	h.Shell(t, `v=$(cat /proc/sys/vm/swappiness); echo $v >/proc/sys/vm/swappiness`)
}
