package settings

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// valueParsers take one value each; what they return in words must be taken again
// and mean the same.
var valueParsers = map[string]func(s string) (again string, same func(string) bool, err error){
	"port": func(s string) (string, func(string) bool, error) {
		p, err := ParsePort(s)
		return fmt.Sprintf("%s:%d:%d", p.Protocol, p.Host, p.Container), func(t string) bool { q, err := ParsePort(t); return err == nil && q == p }, err
	},
	"link": func(s string) (string, func(string) bool, error) {
		l, err := ParseLink(s, "mv-")
		return l.Host + ":" + l.Container, func(t string) bool { m, err := ParseLink(t, "mv-"); return err == nil && m == l }, err
	},
	"signal": func(s string) (string, func(string) bool, error) {
		n, err := ParseSignal(s)
		return fmt.Sprint(int(n)), func(t string) bool { m, err := ParseSignal(t); return err == nil && m == n }, err
	},
	"id": func(s string) (string, func(string) bool, error) {
		id, err := ParseID(s)
		return fmt.Sprintf("%x", id[:]), func(t string) bool { again, err := ParseID(t); return err == nil && again == id }, err
	},
	"cpus": func(s string) (string, func(string) bool, error) {
		cpus, err := ParseCPUs(s)
		return strings.Trim(fmt.Sprint(cpus), "[]"), func(t string) bool { again, err := ParseCPUs(t); return err == nil && slices.Equal(again, cpus) }, err
	},
	"private users": func(s string) (string, func(string) bool, error) {
		u, err := ParsePrivateUsers(s)
		if u.Mode != UserFixed {
			return s, func(t string) bool { again, err := ParsePrivateUsers(t); return err == nil && again == u }, err
		}
		return fmt.Sprintf("%d:%d", u.Base, u.Count), func(t string) bool {
			again, err := ParsePrivateUsers(t)
			return err == nil && again == u && uint64(u.Base)+uint64(u.Count) <= 0xffffffff
		}, err
	},
	"limit": func(s string) (string, func(string) bool, error) {
		l, err := ParseLimit("NOFILE", s)
		return fmt.Sprintf("%d:%d", l.Soft, l.Hard), func(t string) bool {
			again, err := ParseLimit("NOFILE", t)
			return err == nil && again == l && l.Soft <= l.Hard
		}, err
	},
	"size": func(s string) (string, func(string) bool, error) {
		n, err := ParseSize(s)
		return fmt.Sprint(n), func(t string) bool { m, err := ParseSize(t); return err == nil && m == n }, err
	},
	"pivot": func(s string) (string, func(string) bool, error) {
		to, old, err := ParsePivotRoot(s)
		text := to
		if old != "" {
			text += ":" + old
		}
		return text, func(t string) bool {
			to2, old2, err := ParsePivotRoot(t)
			return err == nil && to2 == to && old2 == old && strings.HasPrefix(to, "/") && NormalizedPath(to+old)
		}, err
	},
	"bind": func(s string) (string, func(string) bool, error) {
		m, err := ParseBind(s, false)
		return s, func(string) bool { return strings.HasPrefix(m.Destination, "/") && NormalizedPath(m.Destination) }, err
	},
	"overlay": func(s string) (string, func(string) bool, error) {
		m, err := ParseOverlay(s, false)
		return s, func(string) bool {
			return len(m.Sources) >= 1 && strings.HasPrefix(m.Destination, "/") && NormalizedPath(m.Destination)
		}, err
	},
	"tmpfs": func(s string) (string, func(string) bool, error) {
		m, err := ParseTmpfs(s)
		return s, func(string) bool { return strings.HasPrefix(m.Destination, "/") && NormalizedPath(m.Destination) }, err
	},
	"oom score": func(s string) (string, func(string) bool, error) {
		n, err := ParseOOMScoreAdjust(s)
		return fmt.Sprint(n), func(t string) bool {
			m, err := ParseOOMScoreAdjust(t)
			return err == nil && m == n && n >= -1000 && n <= 1000
		}, err
	},
	"words": func(s string) (string, func(string) bool, error) {
		list, err := SplitWords(s)
		var quoted strings.Builder
		for _, w := range list {
			quoted.WriteByte('"')
			for _, c := range []byte(w) {
				fmt.Fprintf(&quoted, `\x%02x`, c)
			}
			quoted.WriteString(`" `)
		}
		return quoted.String(), func(t string) bool {
			again, err := SplitWords(t)
			return strings.ContainsRune(s, 0) || err == nil && slices.Equal(again, list)
		}, err
	},
}

// FuzzValues looks for values that break a parser, or mean something else when
// they are written again.
func FuzzValues(f *testing.F) {
	for _, s := range []string{
		"", "help", "-1", "0", "80", "udp:53:5353", "eth0:host0", "a-rather-long-name", "SIGRTMIN+3", "RTMAX-1", "9",
		"5ce9d0bc-4b4d-4f21-9b16-9b4ae1c7e2a1", "0-2 5,2", "524288:65536", "4294967295:1", "pick", "yes", "1024:4096",
		"infinity", "1.5G", "1G:2G", "/a:/b", "/a/../b", `/with\:colon:/b:norbind,idmap`, "+/c", ":/tmp", "/l::/d", "/t:mode=0700,size=10%",
		"-1000", `a "b c" \x41 \u20ac '`, "1min 30s", "~@mount bpf",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for name, parse := range valueParsers {
			again, same, err := parse(s)
			if err == nil && !same(again) {
				t.Errorf("%s %q: written as %q it is another one, or it is out of bounds", name, s, again)
			}
		}
		for name := range limits {
			if l, err := ParseLimit(name, s); err == nil && l.Soft > l.Hard {
				t.Errorf("Limit%s=%q: %d is above %d", name, s, l.Soft, l.Hard)
			}
		}
		_, _ = ParseBool(s)
		_, _ = ParseVolatile(s)
		_, _ = ParseResolvConf(s)
		_, _ = ParseTimezone(s)
		_, _ = ParseOwnership(s)
		_, _ = ParsePersonality(s)
		_, _, _ = ParseLinkJournal(s)
		_, _ = ParseBindUserShell(s)
	})
}

// FuzzKeys puts a value behind every key: what is passed over has one line about
// it with its number, and nothing is half taken.
func FuzzKeys(f *testing.F) {
	for _, s := range []string{"", "yes", "foo", "-1", `"a`, "80 80", "a:b c", "/a:/b", "~@mount", "CAP_CHOWN nope", "root a/b", "infinity"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if strings.ContainsAny(value, "\n\r\\") {
			t.Skip("more than one line")
		}
		for _, key := range Keys() {
			section, name, _ := strings.Cut(key, ".")
			file, warnings, err := Parse(strings.NewReader("[" + section + "]\n" + name + "=" + value + "\n"))
			if (file == nil) == (err == nil) {
				t.Fatalf("%s=%q: file %v, error %v: one of both must be nil", name, value, file, err)
			}
			for _, w := range warnings {
				if w.Line != 2 || w.Text == "" {
					t.Errorf("%s=%q: warning %+v, want one about line 2", name, value, w)
				}
			}
		}
	})
}
