package dbus

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

func TestErrorText(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{unix.EEXIST, "File exists"},
		{fmt.Errorf("copy %q: %w", "/a", unix.ENOENT), `copy "/a": No such file or directory`},
		{fmt.Errorf("copy: %w (and more)", unix.ENOENT), "copy: no such file or directory (and more)"},
		{Errorf(ErrorInvalidArgs, "what %s", "\x00\xff"), "what \\0\uFFFD"},
	} {
		if got := errorText(c.err); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}
