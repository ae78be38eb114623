package image

import (
	"errors"
	"strings"
	"testing"
)

func TestParseSource(t *testing.T) {
	for _, c := range []struct {
		text, mirror string
		want         Source
		rule         string // of the error
	}{
		{"debian:trixie", "", Source{"debian", "trixie", ""}, ""},
		{"debian", "http://deb.example/debian", Source{"debian", "stable", "http://deb.example/debian"}, ""},
		{"alpine:3.22", "", Source{"alpine", "3.22", ""}, ""},
		{"arch", "", Source{"arch", "", ""}, ""},
		{"arch:1", "", Source{}, "no releases"},
		{"fedora", "", Source{}, "needs a release"},
		{"fedora:41", "", Source{"fedora", "41", ""}, ""},
		{"debian:", "", Source{}, "empty"},
		{"", "", Source{}, "the distributions are"},
		{"windows:11", "", Source{}, "the distributions are"},
		{"debian:../x", "", Source{}, "a release has"},
		{"debian:-x", "", Source{}, "a release has"},
		{"debian:a b", "", Source{}, "a release has"},
		{"debian:sid", "ftp://x", Source{}, "mirror"},
		{"debian:sid", "http://x y", Source{}, "mirror"},
		{"debian:sid", "--no-check", Source{}, "mirror"},
	} {
		got, err := ParseSource(c.text, c.mirror)
		switch {
		case c.rule == "" && (err != nil || got != c.want):
			t.Errorf("ParseSource(%q) = %+v, %v, want %+v", c.text, got, err, c.want)
		case c.rule != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.rule)):
			t.Errorf("ParseSource(%q, %q) = %v, want ErrInvalid with %q", c.text, c.mirror, err, c.rule)
		}
	}
}

func FuzzParseSource(f *testing.F) {
	f.Add("debian:trixie", "http://deb.debian.org/debian")
	f.Fuzz(func(t *testing.T, text, mirror string) {
		s, err := ParseSource(text, mirror)
		if err != nil {
			return
		}
		for _, m := range distributions[s.Distribution].makers {
			for _, arg := range m.argv(s, "/dir") {
				if strings.ContainsAny(arg, "\x00\n ") {
					t.Errorf("argument %q", arg)
				}
			}
		}
	})
}
