//go:build integration

package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machined/tests/host"
)

// ocitool is the program that makes and serves images, built once for all tests.
var ocitool = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "ocitool")
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, "ocitool")
	cmd := exec.Command("go", "build", "-o", program, "machined/tests/ocitool")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", &buildError{string(out), err}
	}
	return program, nil
})

type buildError struct {
	out string
	err error
}

func (b *buildError) Error() string { return "build ocitool: " + b.err.Error() + "\n" + b.out }

// ociHost brings the tool and archives of two layers into a host: base.tar is a system
// of busybox, app.tar an application on it that takes a file of base's away.
func ociHost(t *testing.T, h *host.Host) {
	t.Helper()
	program, err := ocitool()
	if err != nil {
		t.Fatal(err)
	}
	h.CopyIn(t, program, "/usr/local/bin/ocitool")
	h.BusyboxTree(t, "tree")
	h.Shell(t, `mkdir -p /srv/oci; cd /var/lib/machines/tree; rm -f bin/getent usr/bin/getent; echo old >gone; mkdir -p opaque; echo old >opaque/old
tar -cf /srv/oci/base.tar .; rm -rf /var/lib/machines/tree
mkdir -p /srv/oci/app/srv /srv/oci/app/opaque; cd /srv/oci/app; cat >srv/serve <<'E'
#!/bin/sh
trap 'echo got QUIT; exit 5' QUIT
echo "I am $(id -u):$(id -g) in $PWD, $GREETING, args: $*"
echo state >/data/state || echo "data is not writable"
while :; do sleep 0.1; done
E
chmod 755 srv/serve; mkdir data; chown 1000:1000 data; touch .wh.gone opaque/.wh..wh..opq; echo new >opaque/new; chown -R 1000 srv; tar -cf ../app.tar .`)
}

// ociConfig is the configuration of the test image.
const ociConfig = `{"Entrypoint":["/srv/serve","two words"],"Cmd":["quo\"te","back\\slash"],"Env":["PATH=/usr/bin:/bin","GREETING=hello  world"],
"User":"user:users","WorkingDir":"/srv","StopSignal":"SIGQUIT","Volumes":{"/data":{},"/var/lib/fresh":{}},"ExposedPorts":{"80/tcp":{}}}`

// startRegistry runs a registry in the host and returns when it answers.
func startRegistry(t *testing.T, h *host.Host, address string, login ...string) *host.Process {
	t.Helper()
	p := h.Start(t, append([]string{"ocitool", "serve", address}, login...)...)
	host.Eventually(t, 20*time.Second, func() error {
		if r := h.Try("curl", "-s", "http://"+address+"/v2/"); r.Exit != 0 {
			return unix.ECONNREFUSED
		}
		return nil
	})
	return p
}

// TestOCIImages pulls images from all that they come from, and runs them.
func TestOCIImages(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		ociHost(t, h)
		registry := startRegistry(t, h, "127.0.0.1:5000")
		before := snapshot(t, h)
		digest := strings.TrimSpace(h.MustRun(t, "ocitool", "build", ociConfig, "127.0.0.1:5000/team/app:1", "/srv/oci/base.tar", "/srv/oci/app.tar"))
		r := h.Try("machinectl", "pull-oci", "127.0.0.1:5000/team/app:1")
		if r.Exit != 0 {
			t.Fatal(r)
		}
		_ = digest
		_ = registry
		t.Log(r)
		t.Log(h.Shell(t, "ls -lAR /var/lib/machines | head -60; cat /var/lib/machines/app.nspawn; machinectl list-images --all; machinectl image-status app --no-pager"))
		r = h.Try("machinectl", "start", "app")
		t.Log(r)
		time.Sleep(2 * time.Second)
		t.Log(h.Try("bash", "-c", "machinectl list; machinectl status app --no-pager -l; systemctl status systemd-nspawn@app --no-pager -l; journalctl -u systemd-nspawn@app --no-pager; machinectl shell app /bin/true; time machinectl terminate app; sleep 1;  systemctl status systemd-nspawn@app --no-pager -l; machinectl start app; sleep 1; time systemctl stop systemd-nspawn@app;  journalctl -u systemd-nspawn@app --no-pager; machinectl start app; sleep 1; time machinectl poweroff app; sleep 3; systemctl status systemd-nspawn@app --no-pager -l; cat /proc/mounts | grep machines; ls -laR /var/lib/machines/app.mstack/rw | head -50"))
		unchanged(t, h, before)
	})
}
