package transfer

import (
	"fmt"
	"sort"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// ociSettings turns the configuration of an OCI image into settings of the
// spawner (systemd.nspawn(5)), so that starting the machine runs its entry point.
// lost lists what such a file cannot say.
func ociSettings(c v1.Config) (settings []byte, lost []string) {
	var b strings.Builder
	b.WriteString("# From the configuration of an OCI image.\n[Exec]\nBoot=no\nProcessTwo=yes\n")
	argv := append(append([]string{}, c.Entrypoint...), c.Cmd...)
	if len(argv) == 0 {
		argv = []string{"/bin/sh"}
	}
	words, whole := make([]string, len(argv)), true
	for i, arg := range argv {
		var ok bool
		words[i], ok = quoteSetting(arg)
		whole = whole && ok
	}
	if whole {
		fmt.Fprintf(&b, "Parameters=%s\n", strings.Join(words, " "))
	} else {
		lost = append(lost, "entry point")
	}
	for _, env := range c.Env {
		key, _, ok := strings.Cut(env, "=")
		if !ok || key == "" {
			continue
		}
		if word, ok := quoteSetting(env); ok {
			fmt.Fprintf(&b, "Environment=%s\n", word)
		} else {
			lost = append(lost, "environment variable "+shorten(key))
		}
	}
	if strings.HasPrefix(c.WorkingDir, "/") && c.WorkingDir != "/" && plain(c.WorkingDir) {
		fmt.Fprintf(&b, "WorkingDirectory=%s\n", c.WorkingDir)
	}
	if user, _, _ := strings.Cut(c.User, ":"); user != "" && user != "0" && user != "root" && plain(user) {
		fmt.Fprintf(&b, "User=%s\n", user)
	}
	if c.StopSignal != "" && plain(c.StopSignal) {
		fmt.Fprintf(&b, "KillSignal=%s\n", c.StopSignal)
	}
	var ports []string
	for port := range c.ExposedPorts {
		number, protocol, _ := strings.Cut(port, "/")
		if protocol == "" {
			protocol = "tcp"
		}
		if (protocol == "tcp" || protocol == "udp") && strings.Trim(number, "0123456789") == "" && number != "" {
			ports = append(ports, protocol+":"+number)
		}
	}
	sort.Strings(ports)
	if len(ports) > 0 {
		b.WriteString("\n[Network]\n")
		for _, port := range ports {
			fmt.Fprintf(&b, "Port=%s\n", port)
		}
	}
	return []byte(b.String()), lost
}

// plain says whether a value needs no quotes and cannot end its line.
func plain(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '"' || r == '\'' || r == '\\' }) < 0
}

// quoteSetting writes one word of a list. The spawner's reader takes quotes off
// and knows no escapes, so a word that has both kinds of quotes is made of
// pieces. A line break cannot be written at all: ok is false.
func quoteSetting(s string) (word string, ok bool) {
	if strings.ContainsAny(s, "\n\r\x00") {
		return "", false
	}
	if s != "" && plain(s) {
		return s, true
	}
	var b strings.Builder
	for s != "" || b.Len() == 0 {
		quote, other := byte('"'), byte('\'')
		if i := strings.IndexByte(s, quote); i >= 0 && (strings.IndexByte(s, other) < 0 || i < strings.IndexByte(s, other)) {
			quote = other
		}
		end := strings.IndexByte(s, quote)
		if end < 0 {
			end = len(s)
		}
		b.WriteByte(quote)
		b.WriteString(s[:end])
		b.WriteByte(quote)
		s = s[end:]
	}
	return b.String(), true
}
