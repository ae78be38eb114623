package spawn

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"machined/internal/gpt"
	"machined/internal/imagepolicy"
)

func TestAllowed(t *testing.T) {
	found := map[string]gpt.Partition{
		"root": {FSType: "ext4"}, "root-verity": {FSType: "DM_verity_hash"}, "home": {FSType: "crypto_LUKS"},
		"swap": {FSType: "swap"}, "srv": {FSType: "xfs", Flags: 1 << 60},
	}
	for _, c := range []struct {
		policy string
		want   string // designators that are used; "": refused
	}{
		{"", "home root root-verity srv"},
		{"*", "home root root-verity srv swap"},
		{"root=unprotected", "root"},
		{"root=signed", ""},
		{"root=verity", "root root-verity"},
		{"=unprotected+absent", ""},
		{"=unprotected+absent:home=ignore:swap=ignore", "root root-verity srv"},
		{"root=open:srv=read-only-off", ""},
		{"root=open:srv=read-only-on", "root root-verity srv"},
		{"root=open:usr=unprotected", ""},
		{"-", "-"},
	} {
		var policy *imagepolicy.Policy
		if c.policy != "" {
			p, err := imagepolicy.Parse(c.policy)
			if err != nil {
				t.Fatal(err)
			}
			policy = &p
		}
		ways, err := allowed(policy, found, nil)
		var used []string
		for _, d := range []string{"home", "root", "root-verity", "srv", "swap"} {
			if ways[d] != 0 {
				used = append(used, d)
			}
		}
		got := strings.Join(used, " ")
		if err != nil && !errors.Is(err, imagepolicy.ErrMismatch) || (err != nil) != (c.want == "") || err == nil && got != strings.Trim(c.want, "-") && got != c.want {
			t.Errorf("policy %q: got %q, %v; want %q", c.policy, got, err, c.want)
		}
	}
}

func TestVeritySettings(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "a.raw")
	hash := strings.Repeat("ab", 32)
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("a.raw", "")
	o := Default()
	m := &machine{opts: &o, root: image}
	if v, err := m.veritySettings(m.root); err != nil || v.hash != nil {
		t.Errorf("no sidecar: got %+v, %v", v, err)
	}
	put("a.roothash", hash+"\n")
	put("a.verity", "x")
	put("a.roothash.p7s", "x")
	v, err := m.veritySettings(m.root)
	if err != nil || len(v.hash) != 32 || v.data != filepath.Join(dir, "a.verity") || v.sig != filepath.Join(dir, "a.roothash.p7s") {
		t.Errorf("sidecars: got %+v, %v", v, err)
	}
	t.Setenv("SYSTEMD_DISSECT_VERITY_SIDECAR", "0")
	if v, err := m.veritySettings(m.root); err != nil || v.hash != nil || v.data != "" {
		t.Errorf("sidecars off: got %+v, %v", v, err)
	}
	t.Setenv("SYSTEMD_DISSECT_VERITY_SIDECAR", "1")
	for _, bad := range []string{"", "xy", hash[:30], hash + "0"} {
		put("a.roothash", bad)
		if v, err := m.veritySettings(m.root); err == nil {
			t.Errorf("root hash %q: got %+v", bad, v)
		}
	}
}
