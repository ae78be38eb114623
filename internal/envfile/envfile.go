// Package envfile reads files of assignments by the rules that systemd has for
// them: environment files (systemd.exec(5)), os-release(5), machine-info(5), and
// its own state files. It writes none, and expands nothing.
package envfile

import (
	"slices"
	"strings"
)

// Pair is one assignment.
type Pair struct{ Key, Value string }

// Pairs are assignments in the order of their file, each key once.
type Pairs []Pair

// Parse reads the assignments to valid names of variables (environ(7)). A later
// assignment to a name takes the place of an earlier one. Values with NUL, which
// nothing could carry, are left out.
func Parse(s string) Pairs {
	out := Pairs{}
	for key, value := range Assignments(s) {
		if !ValidKey(key) || strings.IndexByte(value, 0) >= 0 {
			continue
		}
		if i := slices.IndexFunc(out, func(p Pair) bool { return p.Key == key }); i >= 0 {
			out[i].Value = value
		} else if len(out) < maxPairs {
			out = append(out, Pair{key, value})
		}
	}
	return out
}

// maxPairs bounds what Parse keeps, since files may be hostile. Real ones have a
// dozen.
const maxPairs = 1024

// Get returns the value of a key, "" if it has none.
func (p Pairs) Get(key string) string {
	for _, pair := range p {
		if pair.Key == key {
			return pair.Value
		}
	}
	return ""
}

// Lines are the pairs as KEY=VALUE.
func (p Pairs) Lines() []string {
	out := make([]string, len(p))
	for i, pair := range p {
		out[i] = pair.Key + "=" + pair.Value
	}
	return out
}

// ValidKey says whether key is a portable name of a variable.
func ValidKey(key string) bool {
	for i := range len(key) {
		c := key[i]
		letter := c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return key != ""
}

// Assignments yields the assignments of an environment file (systemd.exec(5),
// EnvironmentFile=): comments, bare words, both kinds of quotes, backslashes.
// A quote that is never closed ends the file: its assignment is not yielded.
func Assignments(s string) func(yield func(key, value string) bool) {
	return func(yield func(string, string) bool) {
		for s != "" {
			line, rest, _ := strings.Cut(s, "\n")
			trimmed := strings.TrimLeft(line, " \t\r")
			if trimmed == "" || trimmed[0] == '#' || trimmed[0] == ';' {
				s = rest
				continue
			}
			key, _, ok := strings.Cut(line, "=")
			if !ok {
				s = rest
				continue
			}
			value, n, complete := shellValue(s[len(key)+1:])
			if !complete {
				return
			}
			s = s[len(key)+1+n:]
			if !yield(strings.TrimSpace(key), value) {
				return
			}
		}
	}
}

// shellValue decodes one value from the start of s and returns how many bytes
// it took, the newline included. Quotes are such only before the first character
// outside of them; space after a closing quote counts as space before a value.
func shellValue(s string) (value string, n int, complete bool) {
	var b strings.Builder
	before, quote := true, byte(0)
	keep := 0 // length of b that trailing space may not eat
	trimmed := func() string { return b.String()[:max(keep, len(strings.TrimRight(b.String(), " \t\r")))] }
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == 0 && c == '\n':
			return trimmed(), i + 1, true
		case quote == 0 && before && (c == '"' || c == '\''):
			quote = c
		case quote == 0 && before && (c == ' ' || c == '\t' || c == '\r'):
		case quote != 0 && c == quote:
			quote = 0
			keep = b.Len()
		case c == '\\' && quote != '\'' && i+1 < len(s):
			before = before && quote != 0
			i++
			if s[i] == '\n' {
				continue // a continued line
			}
			if quote == '"' && strings.IndexByte("\"\\`$", s[i]) < 0 {
				b.WriteByte('\\')
			}
			b.WriteByte(s[i])
			keep = b.Len()
		default:
			before = before && quote != 0
			b.WriteByte(c)
		}
	}
	if quote != 0 {
		return "", len(s), false
	}
	return trimmed(), len(s), true
}
