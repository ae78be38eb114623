package main

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"machined/internal/cli"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", name, diff)
	}
}

var machines = []listedMachine{
	{Name: "web", Class: "container", Service: "systemd-nspawn", OSRelease: map[string]string{"ID": "debian", "VERSION_ID": "13"},
		Addresses: []address{{2, []byte{10, 0, 0, 2}}, {10, append([]byte{0xfd}, make([]byte, 15)...)}}},
	{Name: "evil", Class: "vm", Service: "x\x1b[31m"},
	{Name: ".host", Class: "host"},
}

func TestListOutput(t *testing.T) {
	for _, test := range []struct {
		name string
		term cli.Terminal
		set  func(*options)
	}{
		{"list", cli.Terminal{}, func(*options) {}},
		{"list-all", cli.Terminal{}, func(o *options) { o.all, o.maxAddresses = true, allAddresses }},
		{"list-narrow", cli.Terminal{OutTTY: true, Width: 40}, func(*options) {}},
		{"list-color", cli.Terminal{OutTTY: true, Width: 100, Color: true, Colors256: true}, func(*options) {}},
		{"list-json", cli.Terminal{}, func(o *options) { o.output = "json-pretty" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			var o options
			o.defaults()
			test.set(&o)
			table := machineTable(machines, &o)
			var b strings.Builder
			var err error
			if mode := o.jsonMode(); mode != cli.JSONOff {
				err = table.WriteJSON(&b, mode, &test.term)
			} else {
				err = table.Write(&b, cli.Layout{Terminal: &test.term, Legend: true})
			}
			if err != nil {
				t.Fatal(err)
			}
			golden(t, test.name, b.String())
		})
	}
}

func TestStatusOutput(t *testing.T) {
	time.Local = time.UTC
	tree := &cli.CgroupNode{}
	tree.Add("/payload/init.scope", cli.ProcessLine{PID: 171, Command: "/usr/lib/systemd/systemd"})
	tree.Add("/payload/system.slice/a.service", cli.ProcessLine{PID: 9, Command: "nine"})
	tree.Add("/payload/system.slice/a.service", cli.ProcessLine{PID: 1000, Command: strings.Repeat("long ", 30)})
	tree.Add("/supervisor", cli.ProcessLine{PID: 168, Command: "systemd-nspawn"})
	s := machineStatus{Name: "deb", ID: make([]byte, 16), Timestamp: 1795407881000000, Leader: 171, LeaderName: "systemd",
		Service: "systemd-nspawn", Class: "container", Root: "/var/lib/machines/deb", Unit: "systemd-nspawn@deb.service",
		Interfaces: []string{"ve-deb"}, Addresses: []string{"10.0.0.2", "fd00::1%3"}, OS: "Debian", Shift: 65536, Tree: tree}
	var b strings.Builder
	s.write(&b, &cli.Terminal{}, 80, time.UnixMicro(1795407881000000+90*1000000))
	golden(t, "status", b.String())
}

func TestManualCoversAll(t *testing.T) {
	data, err := os.ReadFile("../../man/machinectl.1")
	if err != nil {
		t.Fatal(err)
	}
	manual := strings.ReplaceAll(string(data), `\-`, "-")
	for _, v := range verbs {
		if v.hidden {
			continue
		}
		for _, name := range []string{v.name, v.alias} {
			if name != "" && !strings.Contains(manual, name) {
				t.Errorf("machinectl.1 does not describe the command %s", name)
			}
		}
	}
	var o options
	for _, option := range o.table(nil) {
		if option.Long != "" && !strings.Contains(manual, "--"+option.Long) {
			t.Errorf("machinectl.1 does not describe --%s", option.Long)
		}
		if option.Short != 0 && !strings.Contains(manual, "-"+string(option.Short)) {
			t.Errorf("machinectl.1 does not describe -%c", option.Short)
		}
	}
}

func TestCompletionCoversAll(t *testing.T) {
	for _, path := range []string{"../../completions/bash/machinectl", "../../completions/zsh/_machinectl"} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		words := strings.FieldsFunc(string(data), func(r rune) bool { return r != '-' && (r < 'a' || r > 'z') })
		for _, v := range verbs {
			if !v.hidden && !slices.Contains(words, v.name) {
				t.Errorf("%s does not have the command %s", path, v.name)
			}
		}
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{"deb": true, "a.b-c": true, "": false, "../x": false, "-a": false, "a-": false,
		".a": false, "a..b": false, "a_b": false, strings.Repeat("a", 64): true, strings.Repeat("a", 65): false} {
		if got := validName(name); got != want {
			t.Errorf("validName(%q) = %v, want %v", name, got, want)
		}
	}
}

// TestWordsOfNothing: an empty word is no verb, and a property that is asked for
// does not ask for hidden machines and images.
func TestWordsOfNothing(t *testing.T) {
	if v := findVerb(""); v != nil {
		t.Errorf("the empty verb is %q", v.name)
	}
	var o options
	o.defaults()
	if err := o.addProperty("Name"); err != nil || o.all {
		t.Errorf("--property= turns on --all, error %v", err)
	}
	if a := (&app{opts: o}); !a.shown().Empty {
		t.Error("a property that was asked for is not shown when it is empty")
	}
}

// TestShellEnvironment: a shell learns which terminal it draws on, and that there
// is none.
func TestShellEnvironment(t *testing.T) {
	for _, test := range []struct {
		name, term string
		given      []string
		tty        bool
		want       []string
	}{
		{"terminal", "xterm", nil, true, []string{"TERM=xterm", "COLORTERM=truecolor"}},
		{"terminal, given", "xterm", []string{"TERM=vt100", "A=b"}, true, []string{"TERM=vt100", "A=b", "COLORTERM=truecolor"}},
		{"pipe", "xterm", nil, false, []string{"TERM=dumb"}},
		{"pipe, given", "xterm", []string{"TERM=vt100"}, false, []string{"TERM=vt100"}},
		{"dumb", "dumb", nil, true, []string{"TERM=dumb"}},
	} {
		t.Setenv("TERM", test.term)
		t.Setenv("COLORTERM", "truecolor")
		os.Unsetenv("NO_COLOR")
		term := cli.DetectTerminal()
		term.OutTTY, term.ErrTTY = test.tty, test.tty
		a := newApp(term)
		a.opts.setenv = test.given
		if got := a.shellEnvironment(); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}
