package transfer

import (
	"fmt"
	"sort"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// ociSettings turns the configuration of an OCI image into settings of the
// spawner (systemd.nspawn(5)), so that starting the machine runs its entry point.
func ociSettings(c v1.Config) []byte {
	var b strings.Builder
	b.WriteString("# From the configuration of an OCI image.\n[Exec]\nBoot=no\nProcessTwo=yes\n")
	argv := append(append([]string{}, c.Entrypoint...), c.Cmd...)
	if len(argv) == 0 {
		argv = []string{"/bin/sh"}
	}
	words := make([]string, len(argv))
	for i, arg := range argv {
		words[i] = quoteSetting(arg)
	}
	fmt.Fprintf(&b, "Parameters=%s\n", strings.Join(words, " "))
	for _, env := range c.Env {
		if key, _, ok := strings.Cut(env, "="); ok && key != "" {
			fmt.Fprintf(&b, "Environment=%s\n", quoteSetting(env))
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
	return []byte(b.String())
}

// plain says whether a value needs no quotes and cannot end its line.
func plain(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '"' || r == '\'' || r == '\\' }) < 0
}

// quoteSetting writes one word of a list as systemd.syntax(7) reads it back.
func quoteSetting(s string) string {
	if s != "" && plain(s) {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '\n':
			b.WriteString("\\n")
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, "\\x%02x", c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
