// Package oci owns what OCI images are made of: references to them, their manifests
// and configurations, where those lie (a registry is its caller's business, an image
// layout or an archive is not), and what a configuration means for the spawner. It
// unpacks no layer and fetches nothing from the network.
package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Errors of this package.
var (
	ErrReference = errors.New("invalid OCI reference")
	ErrImage     = errors.New("bad OCI image")
)

// Forms of references to images that are on this host already. The path is absolute;
// a tag or digest may follow it.
const (
	LayoutPrefix        = "oci:"            // a directory, an OCI image layout
	ArchivePrefix       = "oci-archive:"    // a file, an image layout in a tar archive
	DockerArchivePrefix = "docker-archive:" // a file, from docker save or podman save
)

// Reference says which image is meant, and where it is.
type Reference struct {
	Form string // one of the prefixes; "" is a registry
	Path string // of a local form

	Protocol   string // "https", "http" or "file"; "" is not decided yet
	Registry   string // HOST[:PORT]; "" is the default one
	Repository string
	Tag        string
	Digest     string // "sha256:..." pins the image
}

// Local says whether the image is on this host.
func (r Reference) Local() bool { return r.Form != "" }

// Rules of the OCI distribution specification.
var (
	repositoryRule = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*$`)
	tagRule        = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
	digestRule     = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	registryRule   = regexp.MustCompile(`^(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?$`)
)

// maxReference is the longest reference that is looked at, in bytes.
const maxReference = 4096

// Parse reads a reference: [REGISTRY/]NAME[:TAG][@DIGEST] or one of the local forms.
// Its errors are ErrReference and name the rule.
func Parse(s string) (Reference, error) {
	bad := func(rule string) (Reference, error) {
		return Reference{}, fmt.Errorf("%w %.100q: %s", ErrReference, s, rule)
	}
	if s == "" || len(s) > maxReference || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return bad("it is empty, too long, or has control characters")
	}
	var r Reference
	rest := strings.TrimPrefix(s, "docker://")
	for _, prefix := range []string{LayoutPrefix, ArchivePrefix, DockerArchivePrefix} {
		if path, ok := strings.CutPrefix(rest, prefix); ok {
			r.Form, rest = prefix, path
		}
	}
	name, digest, pinned := cutLast(rest, '@')
	if pinned {
		if !digestRule.MatchString(digest) {
			if r.Form == "" {
				return bad("its digest is not sha256: and 64 hexadecimal digits")
			}
			name, digest = rest, "" // the path has an @
		}
		r.Digest = digest
	}
	if r.Form != "" {
		r.Path = name
		path, tag, ok := cutLast(name, ':')
		if r.Form == DockerArchivePrefix { // the tag is a whole NAME:TAG there
			path, tag, ok = strings.Cut(name, ":")
		}
		if ok && (r.Form == DockerArchivePrefix || !strings.Contains(tag, "/")) && !exists(name) {
			r.Path, r.Tag = path, tag
		}
		if !filepath.IsAbs(r.Path) {
			return bad("its path is not absolute")
		}
		return r, nil
	}
	if path, tag, ok := cutLast(name, ':'); ok && !strings.Contains(tag, "/") {
		if !tagRule.MatchString(tag) {
			return bad("its tag is not of at most 128 letters, digits, dots, dashes and underscores")
		}
		name, r.Tag = path, tag
	}
	if first, repository, ok := strings.Cut(name, "/"); ok && namesRegistry(first) {
		if !registryRule.MatchString(first) {
			return bad("its registry is not HOST[:PORT]")
		}
		r.Registry, name = first, repository
	}
	if len(name) > 255 || !repositoryRule.MatchString(name) {
		return bad("its name is not of lower-case letters and digits with single separators")
	}
	r.Repository = name
	return r, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func cutLast(s string, c byte) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, c)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// namesRegistry tells the first part of a name that is a host from the name of a
// user at the default registry, as docker does.
func namesRegistry(s string) bool {
	return s == "localhost" || strings.ContainsAny(s, ".:[")
}

// RegistryDirs are where files about registries lie, the most important first.
var RegistryDirs = []string{
	"/etc/systemd/oci-registry", "/run/systemd/oci-registry", "/usr/local/lib/systemd/oci-registry", "/usr/lib/systemd/oci-registry",
}

// registryFile says how names of images become addresses: systemd's *.oci-registry.
type registryFile struct {
	DefaultProtocol  string `json:"defaultProtocol"`
	OverrideRegistry string `json:"overrideRegistry"`
	DefaultRegistry  string `json:"defaultRegistry"`
	OverrideImage    string `json:"overrideImage"`
	ShortImagePrefix string `json:"shortImagePrefix"`
	DefaultTag       string `json:"defaultTag"`
}

// registryFileMax bounds such a file, in bytes.
const registryFileMax = 64 << 10

// Docker's registry is known without a file: it is what names without a registry
// mean to everybody.
const (
	dockerRegistry = "docker.io"
	dockerHost     = "registry-1.docker.io"
)

// findRegistryFile reads the first file of that name in dirs.
func findRegistryFile(dirs []string, name string) (registryFile, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return registryFile{}, err
		}
		data, err := io.ReadAll(io.LimitReader(f, registryFileMax))
		_ = f.Close()
		if err != nil {
			return registryFile{}, err
		}
		var file registryFile
		if err := json.Unmarshal(data, &file); err != nil {
			return registryFile{}, fmt.Errorf("read %s: %w", path, err)
		}
		return file, nil
	}
	return registryFile{}, fs.ErrNotExist
}

// escapeFile writes a name as a part of a file name: what is no letter, digit, dot,
// dash or underscore as %XX.
func escapeFile(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(".-_", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		fmt.Fprintf(&b, "%%%02x", c)
	}
	return b.String()
}

// Resolve completes a reference by the files in dirs: registry.REGISTRY, image.NAME
// for names without a registry, and default. What such a file names as the default
// registry is looked up once more.
func (r Reference) Resolve(dirs []string) (Reference, error) {
	if r.Local() {
		return r, nil
	}
	if first, rest, ok := strings.Cut(r.Repository, "/"); ok && r.Registry == "" {
		// A file may call a registry what looks like a user's name.
		if file, err := findRegistryFile(dirs, "registry."+escapeFile(first)+".oci-registry"); err == nil {
			r.Registry, r.Repository = first, rest
			return r.apply(file)
		}
	}
	for range 2 {
		name := "image." + escapeFile(r.Repository) + ".oci-registry"
		given := r.Registry != ""
		if given {
			name = "registry." + escapeFile(r.Registry) + ".oci-registry"
		}
		file, err := findRegistryFile(dirs, name)
		if errors.Is(err, fs.ErrNotExist) && r.Registry != dockerRegistry {
			file, err = findRegistryFile(dirs, "default.oci-registry")
		}
		switch {
		case errors.Is(err, fs.ErrNotExist) && r.Registry == dockerRegistry:
			file = registryFile{OverrideRegistry: dockerHost, ShortImagePrefix: "library/"}
		case errors.Is(err, fs.ErrNotExist):
			file = registryFile{}
		case err != nil:
			return Reference{}, err
		}
		if !given && file.OverrideRegistry == "" && file.DefaultRegistry == "" {
			file.DefaultRegistry = dockerRegistry
		}
		again := !given && file.OverrideRegistry == ""
		if r, err = r.apply(file); err != nil || !again {
			return r, err
		}
	}
	return r.apply(registryFile{})
}

// apply completes a reference by one file, and checks what has become of it.
func (r Reference) apply(file registryFile) (Reference, error) {
	if r.Protocol == "" {
		r.Protocol = file.DefaultProtocol
	}
	switch {
	case file.OverrideRegistry != "":
		r.Registry = file.OverrideRegistry
	case r.Registry == "":
		r.Registry = file.DefaultRegistry
	}
	switch {
	case file.OverrideImage != "":
		r.Repository = file.OverrideImage
	case file.ShortImagePrefix != "" && !strings.Contains(r.Repository, "/"):
		r.Repository = file.ShortImagePrefix + r.Repository
	}
	if r.Tag == "" && r.Digest == "" {
		r.Tag = file.DefaultTag
	}
	bad := func(what string) (Reference, error) {
		return Reference{}, fmt.Errorf("%w: a registry file makes %s of it", ErrReference, what)
	}
	switch {
	case r.Protocol != "" && r.Protocol != "https" && r.Protocol != "http" && r.Protocol != "file":
		return bad("protocol " + r.Protocol)
	case r.Protocol == "file" && !filepath.IsAbs(r.Registry) && r.Registry != "localhost":
		return bad("a file reference without an absolute path")
	case r.Protocol != "file" && r.Registry != "" && !registryRule.MatchString(r.Registry):
		return bad(fmt.Sprintf("registry %.80q", r.Registry))
	case !repositoryRule.MatchString(r.Repository):
		return bad(fmt.Sprintf("name %.80q", r.Repository))
	case r.Tag != "" && !tagRule.MatchString(r.Tag):
		return bad(fmt.Sprintf("tag %.80q", r.Tag))
	}
	return r, nil
}

// Version is what a registry knows the image by: its digest, else its tag.
func (r Reference) Version() string {
	switch {
	case r.Digest != "":
		return r.Digest
	case r.Tag != "":
		return r.Tag
	}
	return "latest"
}

// String writes a reference as people do.
func (r Reference) String() string {
	s := r.Form + r.Path
	if r.Form == "" {
		s = r.Repository
		if r.Registry != "" {
			s = r.Registry + "/" + s
		}
	}
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}
