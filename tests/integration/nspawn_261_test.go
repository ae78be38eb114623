//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// TestNspawn261 tries what came with stock 261, which no Debian release has.
func TestNspawn261(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		spawn := func(args ...string) host.Result {
			return h.Try(append([]string{"systemd-run", "-q", "--pipe", "--wait", "systemd-nspawn", "-P", "--register=no", "-M", "bb"}, args...)...)
		}
		const sockets = `nc -lp 0 127.0.0.1 </dev/null >/dev/null 2>&1 & sleep 0.1; kill $! 2>/dev/null && echo inet; ip link >/dev/null 2>&1 && echo netlink; true`
		for _, tt := range []struct {
			name, file string
			options    []string
			want       string
		}{
			{"all", "", nil, "inet\nnetlink\n"},
			{"netlink", "", []string{"--restrict-address-families=AF_UNIX AF_NETLINK"}, "netlink\n"},
			{"not netlink", "", []string{"--restrict-address-families=~AF_NETLINK"}, "inet\n"},
			{"none", "", []string{"--restrict-address-families=none"}, ""},
			{"taken back", "", []string{"--restrict-address-families=none", "--restrict-address-families="}, "inet\nnetlink\n"},
			{"file", "[Exec]\nRestrictAddressFamilies=AF_INET AF_INET6\n", nil, "inet\n"},
			{"option over file", "[Exec]\nRestrictAddressFamilies=none\n", []string{"--restrict-address-families="}, "inet\nnetlink\n"},
		} {
			h.WriteFile(t, "/run/systemd/nspawn/bb.nspawn", tt.file, 0o644)
			if r := spawn(append(tt.options, "sh", "-c", sockets)...); r.Exit != 0 || r.Stdout != tt.want {
				t.Errorf("families, %s: %v, want %q", tt.name, r, tt.want)
			}
		}
		h.WriteFile(t, "/run/systemd/nspawn/bb.nspawn", "", 0o644)
		if r := spawn("--restrict-address-families=AF_FOO", "true"); r.Exit != 1 || !strings.Contains(r.Stderr, "AF_FOO") {
			t.Errorf("unknown family: %v", r)
		}
		h.Shell(t, `printf '#!/bin/sh\necho "$@"; env' >/var/lib/machines/bb/sbin/init`)
		r := spawn("-b", "FOO=bar", "a-b=c", "x.y=z", "plain")
		match(t, r.Stdout, `^x\.y=z plain$`, `^FOO=bar$`, `^a_b=c$`)
		if h.Suite == host.Bookworm {
			if r := spawn("--forward-journal=/var/tmp/x.journal", "true"); r.Exit != 1 || !strings.Contains(r.Stderr, "package systemd-journal-remote") {
				t.Errorf("without a sink: %v", r)
			}
			return
		}
		if r := spawn("--forward-journal-max-files=3", "true"); r.Exit != 1 || !strings.Contains(r.Stderr, "require --forward-journal=") {
			t.Errorf("limit of nothing: %v", r)
		}
		h.OSTree(t, "deb")
		h.MustRun(t, "systemd-run", "-q", "--unit=deb", "systemd-nspawn", "-q", "-b", "-M", "deb", "-U", "--forward-journal=/var/tmp/deb.journal")
		waitRunning(t, h, "deb")
		match(t, h.MustRun(t, "systemctl", "show", "-p", "CoredumpReceive", "machine-deb.scope"), `^CoredumpReceive=yes$`)
		h.MustRun(t, "machinectl", "exec", "deb", "logger", "from inside")
		host.Eventually(t, 10*time.Second, func() error {
			r := h.Try("journalctl", "--file=/var/tmp/deb.journal", "--no-pager", "-o", "short", "-n", "5")
			if !strings.Contains(r.Stdout, ": from inside\n") {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
		h.MustRun(t, "systemctl", "stop", "deb")
		if left := h.Try("sh", "-c", "ls /run/systemd/nspawn/journal; pgrep journal-remote").Stdout; left != "" {
			t.Errorf("left: %q", left)
		}
	})
}
