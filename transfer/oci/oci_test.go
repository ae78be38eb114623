package oci

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"machined/spawn/settings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		in, want string // want is Form|Path|Registry|Repository|Tag|Digest, "" refused
	}{
		{"debian", "|||debian||"},
		{"debian:12", "|||debian|12|"},
		{"docker://debian:12", "|||debian|12|"},
		{"team/app", "|||team/app||"},
		{"localhost/app", "||localhost|app||"},
		{"localhost:5000/app", "||localhost:5000|app||"},
		{"127.0.0.1:5000/a/b/c:1", "||127.0.0.1:5000|a/b/c|1|"},
		{"[::1]:5000/a", "||[::1]:5000|a||"},
		{"quay.io/a/b@" + digest, "||quay.io|a/b||" + digest},
		{"quay.io/a/b:1@" + digest, "||quay.io|a/b|1|" + digest},
		{"a__b-c--d.e", "|||a__b-c--d.e||"},
		{"oci:/srv/x", "oci:|/srv/x||||"},
		{"oci:/srv/x:1", "oci:|/srv/x|||1|"},
		{"oci:/srv/a:b/x", "oci:|/srv/a:b/x||||"},
		{"oci-archive:/srv/x.tar@" + digest, "oci-archive:|/srv/x.tar||||" + digest},
		{"docker-archive:/srv/x.tar:app:1", "docker-archive:|/srv/x.tar|||app:1|"},
		{"docker-archive:/srv/me@home/x.tar", "docker-archive:|/srv/me@home/x.tar||||"},
		{"", ""}, {"UPPER", ""}, {"a..b", ""}, {"-a", ""}, {"a/", ""}, {"/a", ""}, {"a//b", ""}, {"a:", ""}, {"a:-x", ""}, {"a: b", ""}, {"a:b:c", ""},
		{"a@sha256:short", ""}, {"a@md5:d41d8cd98f00b204e9800998ecf8427e", ""}, {"a\nb", ""}, {"bad_host.example/a", ""}, {"host.example:x/a", ""},
		{"oci:relative", ""}, {"docker-archive:", ""}, {"http://quay.io/a", ""}, {strings.Repeat("a", 256), ""}, {strings.Repeat("a", 5000), ""}, {"../../etc", ""},
	} {
		got, err := Parse(tt.in)
		text := strings.Join([]string{got.Form, got.Path, got.Registry, got.Repository, got.Tag, got.Digest}, "|")
		if err != nil {
			text = ""
		}
		if text != tt.want || err != nil && !errors.Is(err, ErrReference) {
			t.Errorf("Parse(%.60q): got %q and %v, want %q", tt.in, text, err, tt.want)
		}
	}
}

func TestResolve(t *testing.T) {
	etc, usr := t.TempDir(), t.TempDir()
	for path, text := range map[string]string{
		filepath.Join(usr, "registry.docker.io.oci-registry"):          `{"overrideRegistry":"registry-1.docker.io","shortImagePrefix":"library/"}`,
		filepath.Join(usr, "registry.fedora.oci-registry"):             `{"overrideRegistry":"registry.fedoraproject.org"}`,
		filepath.Join(usr, "registry.mirror.example.oci-registry"):     `{"overrideRegistry":"wrong.example"}`,
		filepath.Join(etc, "registry.mirror.example.oci-registry"):     `{"overrideRegistry":"right.example:5000","defaultProtocol":"http","defaultTag":"stable"}`,
		filepath.Join(usr, "image.special.oci-registry"):               `{"defaultRegistry":"own.example","overrideImage":"team/special","defaultTag":"v1"}`,
		filepath.Join(usr, "registry.host.example%3a99.oci-registry"):  `{"defaultProtocol":"http"}`,
		filepath.Join(usr, "registry.files.example.oci-registry"):      `{"defaultProtocol":"file","overrideRegistry":"/srv/files"}`,
		filepath.Join(usr, "registry.bad.example.oci-registry"):        `{"defaultProtocol":"ftp"}`,
		filepath.Join(usr, "registry.worse.example.oci-registry"):      `{"overrideRegistry":"a/../../b"}`,
		filepath.Join(usr, "registry.relative.example.oci-registry"):   `{"defaultProtocol":"file","overrideRegistry":"srv"}`,
		filepath.Join(usr, "registry.name.example.oci-registry"):       `{"overrideImage":"../../x"}`,
		filepath.Join(usr, "registry.no-object.example.oci-registry"):  `[]`,
		filepath.Join(usr, "registry.directory.example.oci-registry/"): "",
	} {
		if strings.HasSuffix(path, "/") {
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ in, want string }{
		{"debian", " registry-1.docker.io/library/debian"},
		{"docker.io/team/app:1", " registry-1.docker.io/team/app:1"},
		{"fedora/fedora:41", " registry.fedoraproject.org/fedora:41"},
		{"mirror.example/a", "http right.example:5000/a:stable"},
		{"mirror.example/a@" + digest, "http right.example:5000/a@" + digest},
		{"special", " own.example/team/special:v1"},
		{"host.example:99/a", "http host.example:99/a"},
		{"other.example/a:2", " other.example/a:2"},
		{"files.example/a", "file /srv/files/a"},
		{"oci:/srv/x:1", " oci:/srv/x:1"},
		{"bad.example/a", ""}, {"worse.example/a", ""}, {"relative.example/a", ""}, {"name.example/a", ""}, {"no-object.example/a", ""}, {"directory.example/a", ""},
	} {
		ref, err := Parse(tt.in)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ref.Resolve([]string{etc, filepath.Join(etc, "missing"), usr})
		text := got.Protocol + " " + got.String()
		if err != nil {
			text = ""
		}
		if text != tt.want {
			t.Errorf("Resolve(%q): got %q and %v, want %q", tt.in, text, err, tt.want)
		}
	}
	// Without any file, names are docker's.
	ref, _ := Parse("debian:12")
	if got, err := ref.Resolve(nil); err != nil || got.String() != "registry-1.docker.io/library/debian:12" {
		t.Errorf("without files: got %v, %v", got, err)
	}
}

func TestLogin(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	auth := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	docker := write("config.json", fmt.Sprintf(`{"auths":{"host:5000":{"auth":%q},"https://index.docker.io/v1/":{"auth":%q}},"credHelpers":{"helped.example":"test"}}`, auth("me:secret"), auth("hub:x")), 0o600)
	podman := write("auth.json", fmt.Sprintf(`{"auths":{"host:5000":{"auth":%q},"quay.example/team":{"auth":%q}}}`, auth("other:y"), auth("team:z")), 0o600)
	broken := write("broken.json", `{"auths":`, 0o600)
	write("docker-credential-test", "#!/bin/sh\nread host; echo \"{\\\"ServerURL\\\":\\\"$host\\\",\\\"Username\\\":\\\"from\\\",\\\"Secret\\\":\\\"helper\\\"}\"\n", 0o755)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for _, tt := range []struct {
		name      string
		files     []string
		reference Reference
		want      string
	}{
		{"docker's", []string{filepath.Join(dir, "missing"), docker, podman}, Reference{Registry: "host:5000", Repository: "a"}, "me:secret"},
		{"podman's first", []string{podman, docker}, Reference{Registry: "host:5000", Repository: "a"}, "other:y"},
		{"the hub", []string{podman, docker}, Reference{Registry: "registry-1.docker.io", Repository: "library/a"}, "hub:x"},
		{"of a repository", []string{docker, podman}, Reference{Registry: "quay.example", Repository: "team"}, "team:z"},
		{"from a helper", []string{podman, docker}, Reference{Registry: "helped.example", Repository: "a"}, "from:helper"},
		{"none", []string{docker, podman}, Reference{Registry: "none.example", Repository: "a"}, ":"},
	} {
		got, err := Login(tt.files, LoginNames(tt.reference)...)
		if text := got.Username + ":" + got.Password; err != nil || text != tt.want {
			t.Errorf("%s: got %q, %v, want %q", tt.name, text, err, tt.want)
		}
	}
	if _, err := Login([]string{broken}, "host"); err == nil || !strings.Contains(err.Error(), broken) {
		t.Errorf("broken file: got %v", err)
	}
	env := map[string]string{"REGISTRY_AUTH_FILE": "/r", "DOCKER_CONFIG": "/d", "HOME": "/h"}
	want := fmt.Sprintf("[/r /d/config.json /run/containers/%d/auth.json /h/.docker/config.json /h/.config/containers/auth.json]", os.Geteuid())
	if got := fmt.Sprint(LoginFiles(func(key string) string { return env[key] })); got != want {
		t.Errorf("files: got %s, want %s", got, want)
	}
}

// TestSettings reads what is written as the spawner does.
func TestSettings(t *testing.T) {
	words := []string{"/bin/app", "", "two words", `it's`, `say "x"`, `"a" 'b'`, `back\slash`, "line\nbreak", "tab\t", "%n $HOME `x`", "\x01\x7fü", `trailing\`, "#x", ";y"}
	c := v1.Config{
		Entrypoint: words[:3], Cmd: words[3:], Env: []string{"A=b", "MSG=two  words\\n\n\"q\"", "EMPTY=", "noassign", "bad key=1", "=x"},
		User: "www:www", WorkingDir: "/srv/with space", StopSignal: "SIGQUIT",
		ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}, "8080": {}, "x/tcp": {}, "1/sctp": {}, "80\nBoot=yes": {}},
		Volumes:      map[string]struct{}{"/data": {}, "rel/x": {}, "/": {}, "/../a": {}},
	}
	text, lost := Settings(c)
	file, warnings, err := settings.Parse(strings.NewReader(string(text)))
	if len(warnings) > 0 || err != nil {
		t.Fatalf("warnings: %v, %v", warnings, err)
	}
	if got, want := fmt.Sprintf("%q", file.Parameters), fmt.Sprintf("%q", words); got != want {
		t.Errorf("parameters: got %s, want %s\n%s", got, want, text)
	}
	if got, want := fmt.Sprintf("%q", file.Environment), fmt.Sprintf("%q", c.Env[:3]); got != want {
		t.Errorf("environment: got %s, want %s", got, want)
	}
	if file.User != "www:www" || file.WorkingDirectory != "/srv/with space" || len(lost) != 2 {
		t.Errorf("got user %q, directory %q, lost %v", file.User, file.WorkingDirectory, lost)
	}
	if got := fmt.Sprint(Ports(c)); got != "[tcp:80 tcp:8080 udp:53]" {
		t.Errorf("ports: got %s", got)
	}
	if got := fmt.Sprint(Volumes(c)); got != "[/a /data /rel/x]" {
		t.Errorf("volumes: got %s", got)
	}
	for in, want := range map[string]string{"": "", "0": "", "root": "", "root:root": "", "0:0": "", "1000": "1000", "1000:": "1000", "a:b": "a:b", ":5": "root:5", "0:5": "0:5"} {
		if got := plainUser(in); got != want {
			t.Errorf("user %q: got %q, want %q", in, got, want)
		}
	}
}

func TestPick(t *testing.T) {
	entry := func(os, arch, tag string) string {
		platform := ""
		if os != "" {
			platform = fmt.Sprintf(`,"platform":{"os":%q,"architecture":%q}`, os, arch)
		}
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":1%s,"annotations":{%q:%q}}`, types.OCIManifestSchema1, digest[:70]+fmt.Sprintf("%x", len(os+arch+tag)%16), platform, refName, tag)
	}
	index := func(entries ...string) []byte { return []byte(`{"manifests":[` + strings.Join(entries, ",") + `]}`) }
	linux := Platform{OS: "linux", Architecture: "amd64"}
	for _, tt := range []struct {
		name  string
		index []byte
		tag   string
		want  int // -1: none
	}{
		{"the one of the platform", index(entry("linux", "arm64", ""), entry("windows", "amd64", ""), entry("linux", "amd64", "")), "", 2},
		{"one without a platform", index(entry("linux", "arm64", ""), entry("", "", "")), "", 1},
		{"a platform before none", index(entry("", "", ""), entry("linux", "amd64", "")), "", 1},
		{"by its tag", index(entry("linux", "amd64", "a"), entry("linux", "amd64", "bb")), "bb", 1},
		{"no such tag", index(entry("linux", "amd64", "a")), "x", -1},
		{"attestations", index(entry("unknown", "unknown", "")), "", -1},
		{"empty", index(), "", -1},
	} {
		got, err := Pick(tt.index, tt.tag, linux)
		var all v1.IndexManifest
		if decode("index", tt.index, &all) != nil || (err != nil) != (tt.want < 0) || err == nil && got.Digest != all.Manifests[tt.want].Digest {
			t.Errorf("%s: got %v, %v", tt.name, got.Digest, err)
		}
	}
}

func TestRelayer(t *testing.T) {
	id, err := v1.NewHash(digest)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Relayer([]byte(`{"os":"linux","x-own":{"a":1},"history":[{}],"rootfs":{"diff_ids":[]},"config":{"Cmd":["/x"]}}`), []v1.Hash{id})
	want := `{"config":{"Cmd":["/x"]},"os":"linux","rootfs":{"type":"layers","diff_ids":["` + digest + `"]},"x-own":{"a":1}}`
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
	for _, bad := range []string{"", "null", "[]", "{} {}"} {
		if _, err := Relayer([]byte(bad), nil); !errors.Is(err, ErrImage) {
			t.Errorf("%q: got %v, want ErrImage", bad, err)
		}
	}
}

// FuzzMetadata reads manifests, indexes, configurations and the manifest.json of docker
// save; what is accepted keeps the rules that everything after it counts on.
func FuzzMetadata(f *testing.F) {
	for _, seed := range []string{
		`{"schemaVersion":2,"config":{"digest":"` + digest + `","size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"` + digest + `","size":3}]}`,
		`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + digest + `","size":1,"platform":{"os":"linux","architecture":"amd64"}}]}`,
		`{"os":"linux","config":{"Cmd":["a b","\n"],"Env":["A=b"],"User":"a:b","ExposedPorts":{"80/tcp":{}},"Volumes":{"/x":{}},"StopSignal":"SIGTERM"},"rootfs":{"diff_ids":["` + digest + `"]}}`,
		`[{"Config":"a.json","RepoTags":["a:1"],"Layers":["l/layer.tar"]}]`,
		`[`, `null`, `{}`, `{"layers":null,"manifests":null,"schemaVersion":2}`,
	} {
		f.Add([]byte(seed), seed)
	}
	f.Fuzz(func(t *testing.T, data []byte, reference string) {
		kind, err := Kind(data, "")
		if err == nil && kind.IsIndex() == kind.IsImage() {
			t.Errorf("kind %q", kind)
		}
		if m, err := ParseManifest(data); err == nil {
			for _, l := range append(m.Layers, m.Config) {
				if !digestRule.MatchString(l.Digest.String()) || l.Size < 0 || strings.Contains(blobName(l.Digest.String()), "..") {
					t.Errorf("descriptor %+v", l)
				}
			}
		}
		if d, err := Pick(data, "", Platform{OS: "linux", Architecture: "amd64"}); err == nil && CheckDescriptor("x", d) == nil && !digestRule.MatchString(d.Digest.String()) {
			t.Errorf("descriptor %+v", d)
		}
		if c, err := ParseConfig(data, 1); err == nil {
			text, _ := Settings(c.Config)
			file, _, err := settings.Parse(strings.NewReader(string(text)))
			if err == nil && (file.StartMode != settings.StartPID2 || file.Capability != 0 || len(file.Mounts) > 0) {
				t.Errorf("settings:\n%s", text)
			}
			for _, v := range Volumes(c.Config) {
				if !strings.HasPrefix(v, "/") || strings.Contains(v, "/../") || strings.HasSuffix(v, "/..") {
					t.Errorf("volume %q", v)
				}
			}
		}
		_, _ = pickSaved(data, "a")
		_, _ = Relayer(data, nil)
		if r, err := Parse(reference); err == nil {
			if again, err := Parse(r.String()); err != nil || !r.Local() && again != r {
				t.Errorf("%q: %+v, then %+v, %v", reference, r, again, err)
			}
		}
	})
}
