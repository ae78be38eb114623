//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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
		startRegistry(t, h, "127.0.0.1:5001", "me:secret")
		build := func(target string, layers ...string) string {
			t.Helper()
			return strings.TrimSpace(h.MustRun(t, append([]string{"ocitool", "build", ociConfig, target}, layers...)...))
		}
		digest := build("127.0.0.1:5000/team/app:1", "/srv/oci/base.tar", "/srv/oci/app.tar")
		build("127.0.0.1:5000/team/base:1", "/srv/oci/base.tar")
		build("docker-archive:/srv/oci/saved.tar", "/srv/oci/base.tar", "/srv/oci/app.tar")
		build("oci:/srv/oci/layout", "/srv/oci/base.tar", "/srv/oci/app.tar")
		h.Shell(t, "gzip -k /srv/oci/saved.tar; OCITOOL_LOGIN=me:secret ocitool build '{}' 127.0.0.1:5001/private:1 /srv/oci/base.tar")
		before := snapshot(t, h)
		layers := func() string {
			t.Helper()
			return strings.TrimSpace(h.Shell(t, "ls -d /var/lib/machines/.oci-sha256:* 2>/dev/null | wc -l"))
		}
		refused := func(text string, args ...string) {
			t.Helper()
			r := h.Try(append([]string{"machinectl"}, args...)...)
			if r.Exit != 1 || !strings.Contains(r.Stderr, text) {
				t.Errorf("%v: got %v, want %q", args, r, text)
			}
		}

		t.Run("runs", func(t *testing.T) {
			r := h.Try("machinectl", "pull-oci", "127.0.0.1:5000/team/app:1")
			if r.Exit != 0 {
				t.Fatal(r)
			}
			match(t, r.Stderr, `^Pulling '127\.0\.0\.1:5000/team/app:1', saving as 'app'\.$`, `^Image has 2 layers, 0 already present\.$`, `^Operation completed successfully\.$`)
			match(t, h.MustRun(t, "machinectl", "list-images"), `^app +mstack +no `)
			match(t, h.MustRun(t, "machinectl", "image-status", "app", "--no-pager"), `^\s+Type: mstack$`, `^\s+Path: /var/lib/machines/app\.mstack$`, `^\s+OS: Busybox tree$`)
			h.MustRun(t, "machinectl", "start", "app")
			line := func(pattern string) {
				t.Helper()
				host.Eventually(t, 20*time.Second, func() error {
					if out := h.MustRun(t, "journalctl", "--no-pager", "-o", "cat", "-u", "systemd-nspawn@app"); !regexp.MustCompile(pattern).MatchString(out) {
						return fmt.Errorf("no %q in the journal:\n%s", pattern, out)
					}
					return nil
				})
			}
			line(`I am 1000:100 in /srv, hello  world, args: two words quo"te back\\slash`)
			// The user's is the volume, and what the layers of the host's own have stays as it is.
			h.Shell(t, `cd /var/lib/machines; test $(stat -c %u:%g app.mstack/rw/data/data/state) = 1000:100; test ! -e $(readlink -f app.mstack/layer@1)/data/state
test -d app.mstack/rw/data/var/lib/fresh; test ! -e app.mstack/rw/data/gone`)
			root := h.Shell(t, "echo /proc/$(machinectl show app -P Leader)/root")
			if out := h.Shell(t, "cd "+strings.TrimSpace(root)+"; ls gone 2>&1 || true; ls opaque; stat -c %u . srv/serve"); !strings.Contains(out, "No such file") || strings.Contains(out, "old") {
				t.Errorf("inside: %s", out)
			}
			refused("no systemd runs inside", "shell", "app", "/bin/true")
			refused("currently busy", "remove", "app")
			match(t, h.MustRun(t, "machinectl", "status", "app", "--no-pager"), `^\s+Root: /var/lib/machines/app\.mstack$`, `/srv/serve "two words"`)
			match(t, h.MustRun(t, "systemctl", "status", "systemd-nspawn@app", "--no-pager"), `Active: active \(running\)`, `/srv/serve`)
			// The image's own signal asks it to end, and its status is the unit's.
			h.Try("systemctl", "stop", "systemd-nspawn@app")
			line("got QUIT")
			match(t, h.MustRun(t, "systemctl", "show", "systemd-nspawn@app", "-P", "ExecMainStatus"), `^5$`)
			h.MustRun(t, "machinectl", "start", "app")
			h.MustRun(t, "machinectl", "poweroff", "app")
			waitGone(t, h)
			h.Try("systemctl", "reset-failed")
		})
		t.Run("every source gives the same layers", func(t *testing.T) {
			for i, ref := range []string{
				"127.0.0.1:5000/team/app@" + digest, "docker://127.0.0.1:5000/team/app:1", "oci:/srv/oci/layout", "docker-archive:/srv/oci/saved.tar",
				"/srv/oci/saved.tar.gz", "127.0.0.1:5000/team/base:1",
			} {
				name := fmt.Sprintf("from%d", i)
				h.MustRun(t, "importctl", "-m", "pull-oci", ref, name)
			}
			if got := layers(); got != "2" {
				t.Errorf("layers: got %s, want 2", got)
			}
			seen := h.MustRun(t, "machinectl", "list-images", "--no-legend")
			match(t, seen, `^from0 +mstack`, `^from5 +mstack`)
			if gets := strings.Count(registry.Output(), "GET /v2/team/app/blobs/"); gets != 5 { // two layers, and the configuration each time
				t.Errorf("blobs fetched: got %d, want 5\n%s", gets, registry.Output())
			}
			h.Shell(t, "cd /srv/oci; machinectl pull-oci ./layout; machinectl remove layout; for i in 0 1 2 3 4 5; do machinectl remove from$i; done")
		})
		t.Run("verbs", func(t *testing.T) {
			h.MustRun(t, "machinectl", "clone", "app", "clone")
			h.Shell(t, "echo mine >/var/lib/machines/clone.mstack/rw/data/mine; machinectl rename clone renamed; test ! -e /var/lib/machines/app.mstack/rw/data/mine -a ! -e /var/lib/machines/clone.nspawn")
			if out := h.MustRun(t, "systemd-nspawn", "-q", "--pipe", "-U", "-M", "renamed", "--as-pid2", "--user=root", "cat", "/mine", "/opaque/new"); out != "mine\nnew\n" {
				t.Errorf("clone: got %q", out)
			}
			refused("not supported", "read-only", "app")
			refused("not supported", "set-limit", "app", "1G")
			h.MustRun(t, "machinectl", "clean")
			if got := layers(); got != "2" {
				t.Errorf("layers after clean: got %s, want 2", got)
			}
			h.MustRun(t, "machinectl", "pull-oci", "--read-only", "127.0.0.1:5000/team/app:1", "ro")
			match(t, h.MustRun(t, "machinectl", "list-images"), `^ro +mstack +yes`)
			if r := h.Try("systemd-nspawn", "-q", "--pipe", "-U", "-M", "ro", "sh", "-c", "id -u; touch /srv/x 2>/dev/null || echo read-only; echo kept >/data/x; cat /data/x"); r.Stdout != "1000\nread-only\nkept\n" {
				t.Errorf("read-only image: got %v", r)
			}
		})
		t.Run("export", func(t *testing.T) {
			h.MustRun(t, "machinectl", "export-oci", "renamed", "/srv/oci/out.tar")
			h.MustRun(t, "importctl", "-m", "export-oci", "--format=zstd", "renamed", "/srv/oci/out/")
			h.Shell(t, "machinectl export-oci renamed - | cat >/srv/oci/piped.tar; cmp /srv/oci/piped.tar /srv/oci/out.tar")
			for _, path := range []string{"/srv/oci/out.tar", "/srv/oci/out"} {
				match(t, h.MustRun(t, "ocitool", "check", path), `^3 .*"two words".*"User":"user:users".*"StopSignal":"SIGQUIT"`)
			}
			for i, ref := range []string{"oci-archive:/srv/oci/out.tar", "docker-archive:/srv/oci/out.tar", "oci:/srv/oci/out"} {
				name := fmt.Sprintf("again%d", i)
				h.MustRun(t, "machinectl", "pull-oci", ref, name)
				if out := h.MustRun(t, "systemd-nspawn", "-q", "--pipe", "-U", "-M", name, "--as-pid2", "--user=root", "sh", "-c", "cat /mine; ls /opaque; test -e /gone || echo gone"); out != "mine\nnew\ngone\n" {
					t.Errorf("%s: got %q", ref, out)
				}
				h.Shell(t, "cmp /var/lib/machines/"+name+".nspawn /var/lib/machines/app.nspawn; machinectl remove "+name)
			}
			refused("is not empty", "export-oci", "app", "/srv/oci/out")
			refused("is a stack of layers: export-oci exports it", "export-tar", "app", "/srv/oci/x.tar")
			// A tree is one layer that boots.
			h.BusyboxTree(t, "tree")
			h.MustRun(t, "machinectl", "export-oci", "tree", "/srv/oci/tree.tar")
			match(t, h.MustRun(t, "ocitool", "check", "/srv/oci/tree.tar"), `^1 .*"/sbin/init"`)
			h.MustRun(t, "machinectl", "remove", "tree")
		})
		t.Run("login", func(t *testing.T) {
			refused("wants another login", "pull-oci", "127.0.0.1:5001/private:1")
			h.Shell(t, `mkdir -p /root/.docker; echo '{"auths":{"127.0.0.1:5001":{"auth":"'$(printf me:secret | base64)'"}}}' >/root/.docker/config.json; machinectl pull-oci 127.0.0.1:5001/private:1; machinectl remove private; rm -r /root/.docker
mkdir -p /run/containers/0; echo '{"credHelpers":{"127.0.0.1:5001":"test"}}' >/run/containers/0/auth.json
printf '#!/bin/sh\necho "{\\"ServerURL\\":\\"x\\",\\"Username\\":\\"me\\",\\"Secret\\":\\"secret\\"}"\n' >/usr/local/bin/docker-credential-test; chmod 755 /usr/local/bin/docker-credential-test
machinectl pull-oci 127.0.0.1:5001/private:1; machinectl remove private; rm -r /run/containers/0`)
		})
		t.Run("registry files", func(t *testing.T) {
			h.Shell(t, `mkdir -p /etc/systemd/oci-registry; cd /etc/systemd/oci-registry
echo '{"overrideRegistry":"127.0.0.1:5000","shortImagePrefix":"team/","defaultTag":"1"}' >default.oci-registry
machinectl pull-oci app short; test -d /var/lib/machines/short.mstack; machinectl remove short
echo '{"defaultProtocol":"file","overrideRegistry":"/srv/files"}' >registry.here.example.oci-registry
mkdir -p /srv/files/v2/app/manifests /srv/files/v2/app/blobs; cd /srv/files/v2/app
for b in /srv/oci/layout/blobs/sha256/*; do cp $b blobs/sha256:${b##*/}; cp $b manifests/sha256:${b##*/}; done; cp /srv/oci/layout/index.json manifests/latest
machinectl pull-oci here.example/app filed; test -d /var/lib/machines/filed.mstack; machinectl remove filed; rm -r /etc/systemd/oci-registry`)
		})
		t.Run("failures leave nothing", func(t *testing.T) {
			list := h.Shell(t, "ls -A /var/lib/machines")
			refused("no such image", "pull-oci", "127.0.0.1:5000/team/none:1")
			h.Shell(t, "cp -a /srv/oci/layout /srv/oci/broken; for b in /srv/oci/broken/blobs/sha256/*; do printf x >>$b; done")
			refused("bad OCI image: manifest has", "pull-oci", "oci:/srv/oci/broken", "broken")
			refused("Image 'app' already exists.", "pull-oci", "127.0.0.1:5000/team/app:1")
			refused("OCI reference UPPER is invalid", "pull-oci", "UPPER", "x")
			refused("no such file", "pull-oci", "/srv/oci/absent.tar")
			if after := h.Shell(t, "ls -A /var/lib/machines"); after != list {
				t.Errorf("left: %s", linesOnlyIn(after, list))
			}
		})
		t.Run("worker", func(t *testing.T) {
			// A registry that says nothing more after the first words.
			h.WriteFile(t, "/root/mute.py", "import socket, time\ns = socket.create_server(('127.0.0.1', 5002))\nwhile True: c = s.accept()[0]; time.sleep(1000)\n", 0o644)
			mute := h.Start(t, "python3", "/root/mute.py")
			host.Eventually(t, 20*time.Second, func() error {
				if r := h.Try("bash", "-c", "</dev/tcp/127.0.0.1/5002"); r.Exit != 0 {
					return unix.ECONNREFUSED
				}
				return nil
			})
			p := h.Start(t, "machinectl", "pull-oci", "127.0.0.1:5002/mute:1")
			p.Expect(t, "Pulling '127.0.0.1:5002/mute:1'")
			status := h.Shell(t, "cat /proc/$(pgrep -f ^machine-importd-worker)/status; ls -l /proc/$(pgrep -f ^machine-importd-worker)/fd")
			match(t, status, `^Seccomp:\s+2$`, `^NoNewPrivs:\s+1$`, `^CapEff:\s+000000008820021f$`)
			if left := h.Shell(t, "cd /proc/$(pgrep -f ^machine-importd-worker)/fd; for f in *; do readlink $f || true; done | grep -vE '^(pipe|socket|anon_inode):|/dev/null$' || true"); left != "" {
				t.Errorf("descriptors of the worker: %s", left)
			}
			h.MustRun(t, "machinectl", "cancel-transfer", strings.Fields(h.MustRun(t, "machinectl", "list-transfers", "--no-legend"))[0])
			if exit := p.Wait(t); exit != 1 {
				t.Errorf("a pull that was cancelled: exit %d", exit)
			}
			if err := mute.Signal(h, unix.SIGKILL); err != nil {
				t.Error(err)
			}
		})
		t.Run("layers go with the last image", func(t *testing.T) {
			h.MustRun(t, "machinectl", "remove", "app", "ro")
			if got := layers(); got != "2" {
				t.Errorf("layers with a clone: got %s, want 2", got)
			}
			h.MustRun(t, "machinectl", "remove", "renamed")
			if got := layers(); got != "0" {
				t.Errorf("layers without any image: got %s, want 0", got)
			}
			h.MustRun(t, "machinectl", "pull-oci", "127.0.0.1:5000/team/app:1", "-")
			if got := layers(); got != "2" {
				t.Errorf("layers alone: got %s, want 2", got)
			}
			h.MustRun(t, "machinectl", "clean")
			if left := h.Shell(t, "ls -A /var/lib/machines"); left != "" {
				t.Errorf("left: %s", left)
			}
		})
		unchanged(t, h, before)
	})
}
