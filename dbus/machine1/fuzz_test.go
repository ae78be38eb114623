package machine1

import "testing"

// FuzzLabel: the last elements of object paths.
func FuzzLabel(f *testing.F) {
	f.Add(".host", "_2ehost")
	f.Add("", "_")
	f.Add("4x", "_34x_")
	f.Fuzz(func(t *testing.T, name, label string) {
		if got, ok := UnescapeLabel(EscapeLabel(name)); !ok || got != name {
			t.Errorf("%q became %q, %v", name, got, ok)
		}
		if !MachinePath(name).IsValid() {
			t.Errorf("path of %q is %q", name, MachinePath(name))
		}
		_, _ = UnescapeLabel(label)
	})
}
