package server

import (
	"errors"
	"slices"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus"
	"machined/dbus/machine1"
)

func TestLastLines(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		n          int
		want       []string
	}{
		{"empty", "", 5, []string{}},
		{"none wanted", "a\nb\n", 0, []string{}},
		{"fewer than wanted", "a\nb\n", 5, []string{"a", "b"}},
		{"last", "a\r\nb\r\nc\r\n", 2, []string{"b", "c"}},
		{"half a line", "a\nb", 1, []string{"b"}},
		{"not text", "a\x00\xff\n", 1, []string{"a\uFFFD"}},
		{"colours", "[\x1b[0;32m  OK  \x1b[0m] \x1b[0;1;39mx\x1b[0m\x1b(B\x1b7\n", 1, []string{"[  OK  ] x"}},
		{"title", "\x1b]0;root@x\x07a\x1b]0;b\x1b\\c\n", 1, []string{"ac"}},
		{"half a sequence", "a\tb\x1b[\r\n", 1, []string{"a\tb"}},
		{"empty lines stay", "a\n\n\n", 2, []string{"", ""}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := lastLines(tc.text, tc.n); !slices.Equal(got, tc.want) {
				t.Errorf("lastLines(%q, %d) = %q, want %q", tc.text, tc.n, got, tc.want)
			}
		})
	}
}

func TestGetLog(t *testing.T) {
	client, name, reg := start(t, nil)
	reg.setConsole(strings.Repeat("line\n", 20000) + "\x1b[0;1mlast\r\n")
	object := client.Object(name, machine1.MachinePath("web"))
	var lines []string
	if err := object.Call(machine1.OwnMachineInterface+".GetLog", 0, uint32(2)).Store(&lines); err != nil {
		t.Fatal(err)
	}
	if want := []string{"line", "last"}; !slices.Equal(lines, want) {
		t.Errorf("GetLog(2) = %q, want %q", lines, want)
	}
	if err := object.Call(machine1.OwnMachineInterface+".GetLog", 0, ^uint32(0)).Store(&lines); err != nil {
		t.Fatal(err)
	}
	if len(lines) != maxLogLines {
		t.Errorf("GetLog(max) has %d lines, want %d", len(lines), maxLogLines)
	}
	reg.setConsole("")
	err := object.Call(machine1.OwnMachineInterface+".GetLog", 0, uint32(2)).Err
	if de := (godbus.Error{}); !errors.As(err, &de) || de.Name != dbus.ErrorNotSupported {
		t.Errorf("GetLog without a log: %v, want %s", err, dbus.ErrorNotSupported)
	}
}
