package spawn

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadStack(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{
		"s/layer@10", "s/layer@9", "s/rw", "s/root", "s/robind@var-lib", `s/bind@a\x2db`, "s/tmpfs@extra", "s/.hidden", "s/layer@2.v/layer@2_7",
		"s/layer@2.v/layer@2_8", "unknown/layers", "twice/bind@a", "twice/robind@a", "file", "slash/bind@-", "up/bind@..-x", "rwat/rw@1", "noid/layer@",
	} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"s/layer@1.raw", "file/layer@1"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../s/layer@9", filepath.Join(dir, "s/layer@11")); err != nil {
		t.Fatal(err)
	}
	list, err := readStack(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range list {
		rel, _ := filepath.Rel(dir, e.path)
		got = append(got, e.kind+" "+e.arg+" "+rel)
	}
	layers, rest := 0, map[string]bool{}
	order := []string{"layer 1 s/layer@1.raw", "layer 2 s/layer@2.v/layer@2_8", "layer 9 s/layer@9", "layer 10 s/layer@10", "layer 11 s/layer@9"}
	for _, s := range got {
		if strings.HasPrefix(s, "layer") {
			if layers >= len(order) || s != order[layers] {
				t.Errorf("layer %d is %q", layers, s)
			}
			layers++
			continue
		}
		rest[s] = true
	}
	for _, want := range []string{"rw  s/rw", "root  s/root", "robind /var/lib s/robind@var-lib", `bind /a-b s/bind@a\x2db`, "tmpfs /extra s/tmpfs@extra"} {
		if !rest[want] {
			t.Errorf("no %q in %q", want, got)
		}
	}
	if layers != 5 || len(rest) != 5 {
		t.Errorf("got %q", got)
	}
	for _, bad := range []string{"unknown", "twice", "file", "slash", "up", "rwat", "noid", "absent"} {
		if list, err := readStack(filepath.Join(dir, bad)); err == nil {
			t.Errorf("%s: got %+v", bad, list)
		}
	}
}

func FuzzStackName(f *testing.F) {
	for _, s := range []string{"layer@1.raw.v", "bind@var-lib", `robind@a\x2db`, "rw", "root", "tmpfs@x", "bind@..-x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, ok, err := parseStackName(s)
		if err != nil || !ok || e.kind == "layer" || e.kind == "rw" || e.kind == "root" {
			return
		}
		if filepath.Clean(e.arg) != e.arg || !filepath.IsAbs(e.arg) || e.arg == "/" {
			t.Errorf("%q is mounted at %q", s, e.arg)
		}
	})
}
