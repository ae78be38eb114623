package unit

import "testing"

func TestEscape(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"deb", "deb"},
		{"a-b", `a\x2db`},
		{".host", `\x2ehost`},
		{"a.b", "a.b"},
		{"a/b", "a-b"},
		{"é\t", `\xc3\xa9\x09`},
		{"x@y", `x\x40y`},
	} {
		if got := Escape(tc.in); got != tc.want {
			t.Errorf("Escape(%q) = %q, want %q", tc.in, got, tc.want)
		}
		if back, ok := Unescape(tc.want); !ok || back != tc.in {
			t.Errorf("Unescape(%q) = %q, %v; want %q", tc.want, back, ok, tc.in)
		}
	}
	for _, bad := range []string{`\x2`, `\y2d`, `a b`, `\`, "é"} {
		if got, ok := Unescape(bad); ok {
			t.Errorf("Unescape(%q) = %q, want refused", bad, got)
		}
	}
}

func TestOfCgroup(t *testing.T) {
	for _, tc := range []struct{ path, prefix, unit, sub string }{
		{"/machine.slice/machine-a.scope", "", "machine-a.scope", ""},
		{"/machine.slice/systemd-nspawn@a.service/payload/init.scope", "/", "systemd-nspawn@a.service", "payload/init.scope"},
		{"/lab/payload/system.slice/a.service", "/lab/payload", "a.service", ""},
		{"/init.scope", "", "init.scope", ""},
		{"/", "", "-.slice", ""},
		{"/user.slice/user-1.slice/session-2.scope", "", "session-2.scope", ""},
		{"/_cgroup.service/x", "", "cgroup.service", "x"},
	} {
		unit, sub, err := OfCgroup(tc.path, tc.prefix)
		if err != nil || unit != tc.unit || sub != tc.sub {
			t.Errorf("OfCgroup(%q, %q) = %q, %q, %v; want %q, %q", tc.path, tc.prefix, unit, sub, err, tc.unit, tc.sub)
		}
	}
	for _, bad := range []string{"/../x.service", "/noUnit/x.service", "/other.slice/..", "/docker/abc"} {
		if unit, _, err := OfCgroup(bad, ""); err == nil {
			t.Errorf("OfCgroup(%q) = %q, want an error", bad, unit)
		}
	}
}

func FuzzEscape(f *testing.F) {
	f.Add("a-b/.c")
	f.Add(".#\x00\\x2d")
	f.Fuzz(func(t *testing.T, s string) {
		e := Escape(s)
		if back, ok := Unescape(e); !ok || back != s {
			t.Errorf("Unescape(Escape(%q)) = %q, %v", s, back, ok)
		}
	})
}

func FuzzOfCgroup(f *testing.F) {
	f.Add("/machine.slice/a.scope/x", "/")
	f.Fuzz(func(t *testing.T, path, prefix string) {
		if unit, _, err := OfCgroup(path, prefix); err == nil && !Valid(unit) {
			t.Errorf("OfCgroup(%q, %q) = invalid unit %q", path, prefix, unit)
		}
	})
}
