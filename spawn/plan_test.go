package spawn

import (
	"slices"
	"testing"
)

func TestBootArguments(t *testing.T) {
	t.Parallel()
	argv, env := bootArguments([]string{
		"FOO=bar", "baz-qux=a=b", "systemd.unit=x.target", "some.thing=yes", "plain", "=x", "1a=x", "a!=x", "E=",
	})
	if want := []string{"systemd.unit=x.target", "some.thing=yes", "plain", "=x", "1a=x", "a!=x"}; !slices.Equal(argv, want) {
		t.Errorf("arguments: got %q, want %q", argv, want)
	}
	if want := []string{"FOO=bar", "baz_qux=a=b", "E="}; !slices.Equal(env, want) {
		t.Errorf("environment: got %q, want %q", env, want)
	}
}
