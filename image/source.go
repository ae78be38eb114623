package image

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Source says what system to make an image of: a distribution, and a release of it
// where it has those, as in "debian:trixie".
type Source struct {
	Distribution string
	Release      string
	Mirror       string // URL; "" is the tool's own
}

// maker is a program that installs a distribution into an empty directory.
type maker struct {
	tool string
	// argv is the command line for a directory.
	argv func(s Source, dir string) []string
}

// packages are where programs are that are not called like their package.
var packages = map[string]string{"pacstrap": "arch-install-scripts", "apk": "apk-tools"}

// names is the program as a person has to know it who wants to install it.
func (m maker) names() string {
	if pkg := packages[m.tool]; pkg != "" {
		return m.tool + " (package " + pkg + ")"
	}
	return m.tool
}

var (
	debianMakers = []maker{
		{"mmdebstrap", func(s Source, dir string) []string {
			return withMirror([]string{"--variant=important", "--include=systemd,systemd-sysv,dbus,libpam-systemd", s.Release, dir}, s.Mirror)
		}},
		{"debootstrap", func(s Source, dir string) []string {
			return withMirror([]string{"--include=systemd,systemd-sysv,dbus,libpam-systemd", s.Release, dir}, s.Mirror)
		}},
	}
	// distributions are the names of sources with what makes them, best first, and
	// the release that is meant when none is given.
	distributions = map[string]struct {
		release string
		makers  []maker
	}{
		"debian": {"stable", debianMakers},
		"ubuntu": {"noble", debianMakers},
		"fedora": {"", []maker{{"dnf", func(s Source, dir string) []string {
			argv := []string{"-y", "--installroot=" + dir, "--releasever=" + s.Release, "--use-host-config", "--setopt=install_weak_deps=False"}
			if s.Mirror != "" {
				argv = append(argv, "--repofrompath=mirror,"+s.Mirror, "--repo=mirror")
			}
			return append(argv, "install", "fedora-release", "systemd", "dnf", "passwd", "util-linux")
		}}}},
		"arch": {"", []maker{{"pacstrap", func(_ Source, dir string) []string { return []string{"-c", "-K", dir, "base"} }}}},
		"opensuse": {"tumbleweed", []maker{{"zypper", func(s Source, dir string) []string {
			mirror := s.Mirror
			if mirror == "" {
				mirror = "https://download.opensuse.org/tumbleweed/repo/oss"
				if s.Release != "tumbleweed" {
					mirror = "https://download.opensuse.org/distribution/leap/" + s.Release + "/repo/oss"
				}
			}
			return []string{"--non-interactive", "--root", dir, "--plus-repo", mirror, "install", "--no-recommends", "patterns-base-minimal_base", "systemd", "zypper"}
		}}}},
		"alpine": {"latest-stable", []maker{{"apk", func(s Source, dir string) []string {
			mirror := s.Mirror
			if mirror == "" {
				mirror = "https://dl-cdn.alpinelinux.org/alpine"
			}
			release := s.Release
			if release != "edge" && release != "latest-stable" && !strings.HasPrefix(release, "v") {
				release = "v" + release
			}
			return []string{"--root", dir, "--initdb", "--update-cache", "--keys-dir", "/etc/apk/keys", "--repository", strings.TrimSuffix(mirror, "/") + "/" + release + "/main", "add", "alpine-base"}
		}}}},
	}
)

func withMirror(argv []string, mirror string) []string {
	if mirror != "" {
		argv = append(argv, mirror)
	}
	return argv
}

// ParseSource reads DISTRIBUTION[:RELEASE]. Its errors, ErrInvalid, name the rule.
func ParseSource(text, mirror string) (Source, error) {
	bad := func(format string, args ...any) (Source, error) {
		return Source{}, fmt.Errorf("%w: source %.80q: %s", ErrInvalid, text, fmt.Sprintf(format, args...))
	}
	distribution, release, given := strings.Cut(text, ":")
	known, ok := distributions[distribution]
	if !ok {
		return bad("the distributions are alpine, arch, debian, fedora, opensuse and ubuntu")
	}
	if !given {
		release = known.release
	}
	switch {
	case distribution == "arch":
		if given {
			return bad("arch has no releases")
		}
	case release == "" && given:
		return bad("the release is empty")
	case release == "":
		return bad("%s needs a release, as in %s:41", distribution, distribution)
	case len(release) > 64 || release[0] == '-' || release[0] == '.' || strings.ContainsFunc(release, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._", r)
	}):
		return bad("a release has letters, digits, dots, hyphens and underscores only")
	}
	if mirror != "" && (!strings.HasPrefix(mirror, "http://") && !strings.HasPrefix(mirror, "https://") && !strings.HasPrefix(mirror, "file:///") ||
		len(mirror) > 1000 || strings.ContainsFunc(mirror, func(r rune) bool { return r <= ' ' || r == 0x7f || r == ',' })) {
		return Source{}, fmt.Errorf("%w: mirror %.80q is no http, https or file URL", ErrInvalid, mirror)
	}
	return Source{Distribution: distribution, Release: release, Mirror: mirror}, nil
}

// toolPath is where the programs are looked for: a service has no better PATH.
var toolPath = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// command is the command line that installs the source into dir: that of the first
// program for it that the host has. Without one it is ErrNotSupported, and says
// which would do.
func (s Source) command(dir string) ([]string, error) {
	var names []string
	for _, m := range distributions[s.Distribution].makers {
		for _, bin := range toolPath {
			path, err := exec.LookPath(filepath.Join(bin, m.tool))
			if err == nil {
				return append([]string{path}, m.argv(s, dir)...), nil
			}
		}
		names = append(names, m.names())
	}
	return nil, fmt.Errorf("%w: to make %s install %s", ErrNotSupported, s.Distribution, strings.Join(names, " or "))
}

// looksInstalled says whether a program that ended well has left a system.
func looksInstalled(dir string) bool {
	for _, name := range []string{"usr/lib/os-release", "etc/os-release"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}
