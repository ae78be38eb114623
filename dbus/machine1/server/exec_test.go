package server

import (
	"errors"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus"
)

func TestParseExec(t *testing.T) {
	t.Parallel()
	options := func(key string, value any) map[string]godbus.Variant {
		return map[string]godbus.Variant{key: godbus.MakeVariant(value)}
	}
	for _, tt := range []struct {
		name    string
		command []string
		options map[string]godbus.Variant
		want    string
	}{
		{"nothing", nil, nil, dbus.ErrorInvalidArgs},
		{"no name", []string{"", "x"}, nil, dbus.ErrorInvalidArgs},
		{"too many", make([]string, maxArguments+1), nil, dbus.ErrorInvalidArgs},
		{"many", strings.Split(strings.Repeat("a ", maxArguments), " "), nil, dbus.ErrorLimitsExceeded},
		{"option", []string{"a"}, options("Foo", "x"), dbus.ErrorInvalidArgs},
		{"type", []string{"a"}, options("User", uint32(5)), dbus.ErrorInvalidArgs},
		{"user", []string{"a"}, options("User", "a b"), dbus.ErrorInvalidArgs},
		{"directory", []string{"a"}, options("WorkingDirectory", "tmp"), dbus.ErrorInvalidArgs},
		{"environment", []string{"a"}, options("Environment", []string{"A"}), dbus.ErrorInvalidArgs},
		{"large environment", []string{"a"}, options("Environment", make([]string, maxEnvironment+1)), dbus.ErrorLimitsExceeded},
	} {
		_, err := parseExec(tt.command, tt.options)
		var e *dbus.Error
		if !errors.As(err, &e) || e.Name != tt.want {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
	r, err := parseExec([]string{"a", ""}, map[string]godbus.Variant{
		"User": godbus.MakeVariant("bob"), "Environment": godbus.MakeVariant([]string{"A=b"}), "WorkingDirectory": godbus.MakeVariant("/x"),
	})
	if err != nil || r.User != "bob" || r.Dir != "/x" || len(r.Env) != 1 || len(r.Args) != 2 || r.Terminal {
		t.Errorf("got %+v, %v", r, err)
	}
}
