package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// FuzzOptionValues gives a value to every option that takes one: it is taken or
// refused in one line that names the option.
func FuzzOptionValues(f *testing.F) {
	for _, s := range []string{
		"", "foo", "-1", "=", ":", "/", "..", "a:b", "a=b", "80", "65536", "yes", "infinity", "NOFILE=1:2", "\x00", "\xff", "a\nb", "+/a:/b", "~bpf",
	} {
		f.Add(s)
	}
	c, err := parse(nil)
	if err != nil {
		f.Fatal(err)
	}
	var names []string
	for _, m := range strings.Fields(strings.ReplaceAll(c.fs.FlagUsages(), "[", " ")) {
		if name, ok := strings.CutPrefix(m, "--"); ok && c.fs.Lookup(name) != nil {
			names = append(names, name)
		}
	}
	if len(names) < 60 {
		f.Fatalf("only %d options", len(names))
	}
	f.Fuzz(func(t *testing.T, value string) {
		if value == "help" || strings.HasPrefix(value, "true") {
			t.Skip("prints")
		}
		for _, name := range names {
			if name == "load-credential" { // reads files
				continue
			}
			_, err := parse([]string{"--" + name + "=" + value})
			if err != nil && !strings.Contains(err.Error(), name) {
				t.Errorf("--%s=%q: the message does not name the option: %v", name, value, err)
			}
		}
	})
}

// FuzzUnescape holds what --set-credential= reads against what it was written
// from.
func FuzzUnescape(f *testing.F) {
	for _, s := range []string{"", "a", `\x41`, `\q`, `\`, `\u20ac`, `\101`, `\0`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		data, err := unescapeC(s)
		if err != nil {
			return
		}
		var escaped strings.Builder
		for _, b := range data {
			fmt.Fprintf(&escaped, `\x%02x`, b)
		}
		again, err := unescapeC(escaped.String())
		if !bytes.ContainsRune(data, 0) && (err != nil || !bytes.Equal(again, data)) {
			t.Errorf("%q: %q, written again %q, %v", s, data, again, err)
		}
	})
}

// FuzzUnitProperty looks for assignments that break --property=.
func FuzzUnitProperty(f *testing.F) {
	for _, s := range []string{"TasksMax=5", "MemoryMax=1G", "CPUQuota=20%", "AllowedCPUs=0-3", "DeviceAllow=/dev/null rw", "=", "a", "KillSignal=TERM", "TimeoutStopSec=5min"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := unitProperty(s)
		if err == nil && (p.Name == "" || p.Value.Value() == nil) {
			t.Errorf("%q: property %+v", s, p)
		}
	})
}
