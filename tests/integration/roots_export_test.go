//go:build integration

package integration

import (
	"regexp"
	"testing"

	"golang.org/x/sys/unix"

	"machined/tests/host"
)

// TestRootsExport has sockets of machines shown to the host, and machines whose
// registration fails.
func TestRootsExport(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		if h.Impl == host.Stock && h.Suite == host.Bookworm {
			t.Skip("not in 252")
		}
		before := snapshot(t, h)
		h.BusyboxTree(t, "bb")
		h.BusyboxTree(t, "other")
		for _, users := range []string{"--private-users=no", "-U"} {
			p := h.Start(t, "systemd-nspawn", "-q", "-M", "bb", users, "sh", "-c",
				"cd /run/host/unix-export; mkdir d; mount -t tmpfs t d; touch d/hidden; echo text >file; echo up; sleep 1000")
			p.Expect(t, "up")
			for _, c := range []struct{ script, want string }{
				{"cat /run/systemd/nspawn/unix-export/bb/file", `^text\n$`},
				{"ls /run/systemd/nspawn/unix-export/bb/d", `^$`},
				{"touch /run/systemd/nspawn/unix-export/bb/x 2>&1 || true", `Read-only file system`},
				{"findmnt -no OPTIONS /run/systemd/nspawn/unix-export/bb", `^ro,nosuid,nodev,noexec`},
				// Stock takes the first machine's exports away here, so that this comes last.
				{"systemd-nspawn -q --register=no -M bb -D /var/lib/machines/other true 2>&1 || true", `unix-export/bb' exists already, refusing`},
			} {
				if got := h.Shell(t, c.script); !regexp.MustCompile(c.want).MatchString(got) {
					t.Errorf("%s: %s: got %q, want %q", users, c.script, got, c.want)
				}
			}
			signalSpawner(t, h, unix.SIGTERM)
			p.Wait(t)
		}
		waitGone(t, h)
		unchanged(t, h, before)
		ours(t)
		t.Run("killed", func(t *testing.T) {
			p := h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "sh", "-c", "echo up; sleep 1000")
			p.Expect(t, "up")
			signalSpawner(t, h, unix.SIGKILL)
			p.Wait(t)
			waitGone(t, h)
			h.MustRun(t, "systemd-nspawn", "-q", "-M", "bb", "true")
			waitGone(t, h)
			unchanged(t, h, before)
		})
		t.Run("registration fails", func(t *testing.T) {
			h.Shell(t, `systemctl mask --runtime systemd-machined.service; systemctl stop systemd-machined.service 2>/dev/null || true`)
			defer h.Shell(t, `systemctl unmask --runtime systemd-machined.service`)
			if r := h.Try("systemd-nspawn", "-M", "bb", "true"); r.Exit != 1 || !regexp.MustCompile("Failed to register machine").MatchString(r.Output()) {
				t.Errorf("--register=yes: got %v", r)
			}
			if r := h.Try("systemd-nspawn", "-M", "bb", "--register=auto", "sh", "-c", "echo ran"); r.Exit != 0 || !regexp.MustCompile("(?s)Failed to register machine, ignoring.*ran").MatchString(r.Stderr+r.Stdout) {
				t.Errorf("--register=auto: got %v", r)
			}
		})
		h.MustRun(t, "systemd-nspawn", "-q", "-M", "bb", "--register=auto", "sh", "-c", "true")
		waitGone(t, h)
		unchanged(t, h, before)
	})
}
