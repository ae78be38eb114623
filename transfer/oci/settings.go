package oci

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Settings turns the configuration of an OCI image into settings of the spawner
// (systemd.nspawn(5)), so that starting the machine runs its entry point. lost lists
// what such a file cannot say.
func Settings(c v1.Config) (settings []byte, lost []string) {
	var b strings.Builder
	// A stub init stands between, so that signals and orphans are cared for.
	b.WriteString("# From the configuration of an OCI image.\n[Exec]\nBoot=no\nProcessTwo=yes\n")
	argv := append(append([]string{}, c.Entrypoint...), c.Cmd...)
	if len(argv) == 0 {
		argv = []string{"/bin/sh"}
	}
	if words, ok := quoteAll(argv); ok {
		fmt.Fprintf(&b, "Parameters=%s\n", words)
	} else {
		lost = append(lost, "entry point")
	}
	for _, env := range c.Env {
		key, _, ok := strings.Cut(env, "=")
		if !validVariable(key) {
			lost = append(lost, fmt.Sprintf("environment variable %.80q", key))
			continue
		}
		if !ok {
			continue // taken from the environment of whoever runs it, which there is none of
		}
		if word, ok := quoteAll([]string{env}); ok {
			fmt.Fprintf(&b, "Environment=%s\n", word)
		} else {
			lost = append(lost, fmt.Sprintf("environment variable %.80q", key))
		}
	}
	if dir := path.Clean("/" + c.WorkingDir); dir != "/" {
		if oneLine(dir) {
			fmt.Fprintf(&b, "WorkingDirectory=%s\n", dir)
		} else {
			lost = append(lost, "working directory")
		}
	}
	if user := plainUser(c.User); user != "" {
		if oneWord(user) {
			fmt.Fprintf(&b, "User=%s\n", user)
		} else {
			lost = append(lost, "user")
		}
	}
	stop := c.StopSignal
	if !oneWord(stop) {
		stop = "SIGTERM"
	}
	fmt.Fprintf(&b, "KillSignal=%s\n", stop)
	if ports := Ports(c); len(ports) > 0 {
		// Of the machine's ports on the host's, only whoever runs the host can decide.
		b.WriteString("\n# Counts in a copy of this file in /etc/systemd/nspawn only.\n[Network]\n")
		for _, port := range ports {
			fmt.Fprintf(&b, "Port=%s\n", port)
		}
	}
	return []byte(b.String()), lost
}

// plainUser leaves out what stands for root anyway.
func plainUser(user string) string {
	name, group, grouped := strings.Cut(user, ":")
	root := name == "" || name == "0" || name == "root"
	switch {
	case root && (!grouped || group == "" || group == "0" || group == "root"):
		return ""
	case root && name == "":
		return "root:" + group
	case group == "":
		return name
	}
	return user
}

// Ports lists the ports that an image listens on as a settings file has them.
func Ports(c v1.Config) []string {
	var ports []string
	for _, port := range slices.Sorted(maps.Keys(c.ExposedPorts)) {
		number, protocol, _ := strings.Cut(port, "/")
		if protocol == "" {
			protocol = "tcp"
		}
		if (protocol == "tcp" || protocol == "udp") && strings.Trim(number, "0123456789") == "" && number != "" && len(number) <= 5 {
			ports = append(ports, protocol+":"+number)
		}
	}
	slices.Sort(ports)
	return ports
}

// Volumes lists the directories that an image keeps its data in, cleaned.
func Volumes(c v1.Config) []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(c.Volumes)) {
		if clean := path.Clean("/" + name); clean != "/" && !strings.ContainsRune(clean, 0) && len(clean) < 4096 {
			list = append(list, clean)
		}
	}
	return slices.Compact(list)
}

func validVariable(key string) bool {
	return key != "" && !strings.ContainsFunc(key, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"'\\$`", r)
	})
}

// oneLine says whether a value can be written on a line by itself.
func oneLine(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) < 0 && !strings.HasSuffix(s, "\\") &&
		strings.TrimSpace(s) == s
}

// oneWord says whether a value needs no quotes and cannot end its line.
func oneWord(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '"' || r == '\'' || r == '\\' }) < 0
}

// quoteAll writes a list of words. A NUL byte, and what is not UTF-8, cannot be
// written: ok is false.
func quoteAll(list []string) (words string, ok bool) {
	quoted := make([]string, len(list))
	for i, s := range list {
		if quoted[i], ok = quote(s); !ok {
			return "", false
		}
	}
	return strings.Join(quoted, " "), true
}

func quote(s string) (word string, ok bool) {
	if strings.ContainsRune(s, 0) || !utf8.ValidString(s) {
		return "", false
	}
	if oneWord(s) {
		return s, true
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String(), true
}
