package settings

import (
	"errors"
	"fmt"
	"strings"
)

// splitColons splits at colons; a backslash takes the next byte as it is.
func splitColons(s string) ([]string, error) {
	var out []string
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case ':':
			out = append(out, b.String())
			b.Reset()
		case '\\':
			if i++; i == len(s) {
				return nil, errors.New("backslash at the end")
			}
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return append(out, b.String()), nil
}

// source reads a mount's source: a path of the host, +PATH of the image, or
// nothing.
func source(s string) (Source, error) {
	if s == "" {
		return Source{}, nil
	}
	rest, inImage := strings.CutPrefix(s, "+")
	p, err := cleanPath(rest)
	return Source{p, inImage}, err
}

// ParseBind reads SOURCE[:DESTINATION[:OPTIONS]].
func ParseBind(s string, readOnly bool) (Mount, error) {
	parts, err := splitColons(s)
	if err != nil {
		return Mount{}, err
	}
	if len(parts) > 3 {
		return Mount{}, fmt.Errorf("%q: want SOURCE[:DESTINATION[:OPTIONS]]", s)
	}
	src, err := source(parts[0])
	if err != nil {
		return Mount{}, err
	}
	m := Mount{Kind: MountBind, Sources: []Source{src}, Destination: src.Path, ReadOnly: readOnly}
	if len(parts) > 1 {
		m.Destination = parts[1]
	}
	if m.Destination, err = cleanPath(m.Destination); err != nil {
		return Mount{}, fmt.Errorf("destination: %w", err)
	}
	if len(parts) == 3 {
		m.Bind = parseBindOptions(parts[2])
	}
	return m, nil
}

// parseBindOptions reads options of a bind mount, separated by commas.
func parseBindOptions(s string) BindOptions {
	var o BindOptions
	for w := range strings.SplitSeq(s, ",") {
		switch w {
		case "", "rbind":
			o.NonRecursive = o.NonRecursive && w == ""
		case "norbind":
			o.NonRecursive = true
		case "noidmap":
			o.IDMap = IDMapNone
		case "idmap":
			o.IDMap = IDMapFull
		case "rootidmap":
			o.IDMap = IDMapRoot
		case "owneridmap":
			o.IDMap = IDMapOwner
		default:
			o.Bad = w
			return o
		}
	}
	return o
}

// ParseTmpfs reads PATH[:OPTIONS].
func ParseTmpfs(s string) (Mount, error) {
	p, options, ok := cutColon(s)
	if !ok {
		options = "mode=0755"
	}
	dst, err := cleanPath(p)
	return Mount{Kind: MountTmpfs, Destination: dst, Options: options}, err
}

// cutColon cuts at the first colon that no backslash protects; only the part
// before it is unescaped.
func cutColon(s string) (before, after string, found bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == ':':
			return b.String(), s[i+1:], true
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), "", false
}

// ParseInaccessible reads the path that is to be masked.
func ParseInaccessible(s string) (Mount, error) {
	dst, err := cleanPath(s)
	return Mount{Kind: MountInaccessible, Destination: dst}, err
}

// ErrOneDirectory is wrapped where an overlay has one directory or none.
var ErrOneDirectory = errors.New("an overlay needs at least two directories")

// ParseOverlay reads LOWER[:LOWER...]:UPPER:DESTINATION, or LOWER:UPPER, whose
// destination is the upper's path; read-only the upper one is just the topmost.
func ParseOverlay(s string, readOnly bool) (Mount, error) {
	parts, err := splitColons(s)
	if err != nil {
		return Mount{}, err
	}
	if len(parts) < 2 {
		return Mount{}, fmt.Errorf("%q: %w", s, ErrOneDirectory)
	}
	m := Mount{Kind: MountOverlay, ReadOnly: readOnly}
	layers, dst := parts, strings.TrimPrefix(parts[len(parts)-1], "+")
	if len(parts) > 2 {
		layers, dst = parts[:len(parts)-1], parts[len(parts)-1]
	}
	for i, l := range layers {
		src, err := source(l)
		if err != nil {
			return Mount{}, err
		}
		if src.Path == "" && i != len(layers)-1 {
			return Mount{}, fmt.Errorf("%q: only the upper directory can be left out", s)
		}
		m.Sources = append(m.Sources, src)
	}
	m.Destination, err = cleanPath(dst)
	return m, err
}
