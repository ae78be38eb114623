//go:build integration

package integration

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machined/tests/host"
)

// webServer serves /srv/www on the host's loopback; what is called slow it
// sends at some 640 KB/s.
const webServer = `
import http.server, os, time
class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass
    def copyfile(self, source, out):
        while block := source.read(65536):
            out.write(block)
            if "slow" in self.path: time.sleep(0.1)
os.chdir("/srv/www")
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
`

// serveImages puts archives of a small tree on the host's web server.
func serveImages(t *testing.T, h *host.Host) {
	t.Helper()
	h.BusyboxTree(t, "tree")
	h.Shell(t, `mkdir -p /srv/www; cd /srv/www
tar -cJf image.tar.xz -C /var/lib/machines/tree .
head -c 16000000 /dev/urandom >big; tar -cf slow.tar big; rm big
truncate -s 1M disk.raw; xz disk.raw
sha256sum image.tar.xz slow.tar >SHA256SUMS
rm -rf /var/lib/machines/tree`)
	h.WriteFile(t, "/root/web.py", webServer, 0o644)
	h.Start(t, "python3", "/root/web.py")
	host.Eventually(t, 20*time.Second, func() error {
		r := h.Try("curl", "-sf", "http://127.0.0.1:8000/SHA256SUMS")
		if r.Exit != 0 {
			return unix.ECONNREFUSED
		}
		return nil
	})
}

// TestClientTransfers pulls, imports and exports, in the words of the scenario.
func TestClientTransfers(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		serveImages(t, h)
		eachClient(t, h, func(t *testing.T, client string) {
			t.Run("pull", func(t *testing.T) {
				r := h.Try(client, "pull-tar", "--verify=checksum", "http://127.0.0.1:8000/image.tar.xz", "pulled")
				if r.Exit != 0 {
					t.Fatalf("pull-tar: %v", r)
				}
				match(t, r.Stderr, `Enqueued transfer job \d+\. Press C-c to continue download in background\.`,
					`Pulling 'http://127\.0\.0\.1:8000/image\.tar\.xz', saving as 'pulled'\.`,
					`HTTP request to http://127\.0\.0\.1:8000/image\.nspawn failed with code 404\.`,
					`Settings file could not be retrieved, proceeding without\.`,
					`SHA256 checksum of http://127\.0\.0\.1:8000/image\.tar\.xz is valid\.`,
					`Created new local image 'pulled'\.`)
				match(t, h.MustRun(t, client, "list-images", "--no-legend"), `^pulled +\w+ +no`)
				h.MustRun(t, client, "remove", "pulled")
			})
			t.Run("refused", func(t *testing.T) {
				// There is a checksum, and nothing that signs it.
				r := h.Try(client, "pull-tar", "http://127.0.0.1:8000/image.tar.xz", "unsigned")
				if r.Exit != 1 || strings.Contains(h.MustRun(t, client, "list-images"), "unsigned") {
					t.Errorf("pull without a signature: %v", r)
				}
				if r := h.Try(client, "pull-tar", "--verify=no", "http://127.0.0.1:8000/absent.tar", "absent"); r.Exit != 1 {
					t.Errorf("pull of what is not there: %v", r)
				}
			})
			t.Run("background", func(t *testing.T) {
				p := h.StartTTY(t, "", client, "pull-tar", "--verify=no", "http://127.0.0.1:8000/slow.tar", "slow")
				p.Expect(t, "Press C-c to continue download in background.")
				p.Expect(t, "Downloading 15.")
				list := h.MustRun(t, client, "list-transfers")
				match(t, list, `^ *ID +(PERCENT|PROGRESS) +TYPE +.*LOCAL +REMOTE`, `^ *\d+ +\S+ +pull-tar .*slow +http://127\.0\.0\.1:8000/slow\.tar`,
					`^1 transfers listed\.$`)
				if err := p.Signal(h, unix.SIGINT); err != nil {
					t.Fatal(err)
				}
				p.Expect(t, `Continuing download in the background. Use "`)
				p.Expect(t, `ctl cancel-transfer `)
				p.Expect(t, `" to abort transfer.`)
				if got := p.Wait(t); got != 1 {
					t.Errorf("status after Ctrl-C: got %d, want 1", got)
				}
				id := strings.Fields(h.MustRun(t, client, "list-transfers", "--no-legend"))[0]
				h.MustRun(t, client, "cancel-transfer", id)
				host.Eventually(t, 10*time.Second, func() error {
					if out := h.MustRun(t, client, "list-transfers"); out != "No transfers.\n" {
						return unix.EBUSY
					}
					return nil
				})
				if r := h.Try(client, "cancel-transfer", id); r.Exit != 1 || !strings.Contains(r.Stderr, "Could not cancel transfer: No transfer by id "+id) {
					t.Errorf("cancel a second time: %v", r)
				}
			})
			t.Run("import and export", func(t *testing.T) {
				h.MustRun(t, client, "import-tar", "/srv/www/image.tar.xz", "imported")
				h.Shell(t, "cat /srv/www/image.tar.xz | "+client+" import-tar - streamed")
				h.MustRun(t, client, "import-raw", "/srv/www/disk.raw.xz", "disk")
				h.MustRun(t, client, "import-fs", "/var/lib/machines/imported", "copied")
				match(t, h.MustRun(t, client, "list-images", "--no-legend"), `^imported `, `^streamed `, `^copied `, `^disk +raw `)
				h.MustRun(t, client, "export-tar", "imported", "/tmp/out.tar.gz")
				want := h.Shell(t, "tar -tJf /srv/www/image.tar.xz | grep -v '/$' | sort")
				if got := h.Shell(t, "tar -tzf /tmp/out.tar.gz | grep -v '/$' | sort"); got != want {
					t.Errorf("exported archive has other names than the imported one:\n%s\nwant:\n%s", got, want)
				}
				if got := h.Shell(t, client+" export-tar imported 2>/dev/null | tar -t | grep -v '/$' | sort"); got != want {
					t.Errorf("archive on standard output: got\n%s\nwant\n%s", got, want)
				}
				h.Shell(t, "rm -f /tmp/out.raw.xz; "+client+" export-raw disk /tmp/out.raw.xz && xz -t /tmp/out.raw.xz")
				h.MustRun(t, client, "remove", "imported", "streamed", "copied", "disk")
			})
		})
	})
}
