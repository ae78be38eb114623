package vpick

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestCompareVersions(t *testing.T) {
	ordered := []string{"~1", "", "ab", "abb", "abc", "0001~x", "0002", "12", "122.9", "123~rc1-1", "123", "123-a", "123-a.1", "123-a1", "123-1", "123-1.1", "123^post1", "123.a-1", "123.1-1", "123a-1", "124-1"}
	for i, a := range ordered {
		for j, b := range ordered {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := Compare(a, b); got != want {
				t.Errorf("Compare(%q, %q) = %d, want %d", a, b, got, want)
			}
		}
	}
}

func TestResolve(t *testing.T) {
	base := t.TempDir()
	for _, d := range []string{
		"vv.v/vv_1.2", "vv.v/vv_1.10", "vv.v/vv_1.10~rc1", "vv.v/vv_2+3-1", "vv.v/vv_3+0-2", "vv.v/vv_9_ia64", "vv.v/other_7", "vv.v/vv_",
		"empty.v", "plain", "disk.raw.v/disk_8.raw", "two.v", "old.v/old_1+0", "old.v/old_2+0-1",
	} {
		if err := os.MkdirAll(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"vv.v/vv_99", "disk.raw.v/disk_1.raw", "disk.raw.v/disk_2.raw", "disk.raw.v/disk_3", "two.v/two_5.raw", "two.v/two_6.img", "file.v"} {
		if err := os.WriteFile(filepath.Join(base, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		path, suffix string
		directories  bool
		want         string // "": no match
	}{
		{"vv.v", "", true, "vv.v/vv_2+3-1"},
		{"vv.v/", "", true, "vv.v/vv_2+3-1"},
		{"vv.v/vv___", "", true, "vv.v/vv_2+3-1"},
		{"vv.v/other___", "", true, "vv.v/other_7"},
		{"vv.v/vv_1.2", "", true, "vv.v/vv_1.2"},
		{"vv.v/vv_1.2___", "", true, ""},
		{"old.v", "", true, "old.v/old_2+0-1"},
		{"empty.v", "", true, ""},
		{"plain", "", true, "plain"},
		{"absent.v", "", true, "absent.v"},
		{"plain/x___", "", true, "plain/x___"},
		{"disk.raw.v", ".raw", false, "disk.raw.v/disk_2.raw"},
		{"disk.raw.v/disk___.raw", ".raw", false, "disk.raw.v/disk_2.raw"},
		{"two.v", ".raw", false, "two.v/two_5.raw"},
		{"two.v/two___.raw", ".raw", false, "two.v/two_5.raw"},
		{"file.v", ".raw", false, "file.v"},
	} {
		got, err := Resolve(filepath.Join(base, c.path), c.suffix, c.directories)
		if c.want == "" {
			if !errors.Is(err, ErrNone) {
				t.Errorf("%s: got %q, %v", c.path, got, err)
			}
			continue
		}
		if want := filepath.Join(base, c.want); filepath.Clean(got) != want || err != nil {
			t.Errorf("%s: got %q, %v; want %q", c.path, got, err, want)
		}
	}
}

func FuzzCompare(f *testing.F) {
	f.Add("1.2~rc1", "1.2", "1.3")
	f.Add("a-1^2", "", "~")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if Compare(a, b) != -Compare(b, a) {
			t.Errorf("%q and %q: %d one way, %d the other", a, b, Compare(a, b), Compare(b, a))
		}
		if Compare(a, b) <= 0 && Compare(b, c) <= 0 && Compare(a, c) > 0 {
			t.Errorf("%q <= %q <= %q, but not the first and the last", a, b, c)
		}
		parseCandidate(a, b, c)
	})
}
