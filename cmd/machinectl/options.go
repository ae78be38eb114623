package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"machined/internal/cli"
	"machined/internal/release"
)

// allAddresses stands for --max-addresses=all.
const allAddresses = ^uint32(0)

// options are the command line's options; machinectl(1).
type options struct {
	target       cli.Target
	ask          bool
	noPager      bool
	legend       bool
	quiet        bool
	all          bool
	showEmpty    bool // properties that are empty are shown
	full         bool
	properties   []string
	valueOnly    bool
	killWhom     string
	signal       int32
	uid          string
	setenv       []string
	chdir        string
	tty          bool
	readOnly     bool
	keepIdentity bool
	overlay      bool
	from         string
	mirror       string
	keep         uint32
	mkdir        bool
	lines        uint32
	maxAddresses uint32
	output       string
	force        bool
	now          bool
	runner       string
	verify       string
	format       string
}

func (o *options) defaults() {
	*o = options{ask: true, legend: true, signal: 15, lines: 10, keep: 3, maxAddresses: 1, output: "short", runner: "nspawn"}
}

// outputModes are the modes of journalctl(1), in stock's order.
var outputModes = []string{
	"short", "short-full", "short-iso", "short-iso-precise", "short-precise", "short-monotonic", "short-delta",
	"short-unix", "verbose", "export", "json", "json-pretty", "json-sse", "json-seq", "cat", "with-unit",
}

func (o *options) jsonMode() cli.JSONMode {
	switch o.output {
	case "json":
		return cli.JSONShort
	case "json-pretty":
		return cli.JSONPretty
	case "json-sse":
		return cli.JSONSSE
	case "json-seq":
		return cli.JSONSeq
	}
	return cli.JSONOff
}

func set(b *bool, value bool) func(string) error {
	return func(string) error { *b = value; return nil }
}

func keep(s *string) func(string) error {
	return func(arg string) error { *s = arg; return nil }
}

// table is the options with what they do.
func (o *options) table(a *app) []cli.Option {
	return []cli.Option{
		{Short: 'h', Long: "help", Set: func(string) error { a.help(); return errDone }},
		{Long: "version", Set: func(string) error { fmt.Print(release.Text("machinectl", version)); return errDone }},
		{Long: "no-pager", Set: set(&o.noPager, true)},
		{Long: "no-legend", Set: set(&o.legend, false)},
		{Long: "no-ask-password", Set: set(&o.ask, false)},
		{Short: 'H', Long: "host", Arg: cli.RequiredArg, Set: o.target.SetHost},
		{Short: 'M', Long: "machine", Arg: cli.RequiredArg, Set: o.target.SetMachine},
		{Long: "user", Set: set(&o.target.User, true)},
		{Long: "system", Set: set(&o.target.User, false)},
		{Short: 'p', Long: "property", Arg: cli.RequiredArg, Set: o.addProperty},
		{Long: "value", Set: set(&o.valueOnly, true)},
		{Short: 'P', Arg: cli.RequiredArg, Set: func(arg string) error { o.valueOnly = true; return o.addProperty(arg) }},
		{Short: 'q', Long: "quiet", Set: set(&o.quiet, true)},
		{Short: 'a', Long: "all", Set: set(&o.all, true)},
		{Short: 'l', Long: "full", Set: set(&o.full, true)},
		{Long: "kill-whom", Arg: cli.RequiredArg, Set: keep(&o.killWhom)},
		{Long: "kill-who", Arg: cli.RequiredArg, Hidden: true, Set: keep(&o.killWhom)},
		{Short: 's', Long: "signal", Arg: cli.RequiredArg, Set: o.setSignal},
		{Short: 'u', Long: "uid", Arg: cli.RequiredArg, Set: keep(&o.uid)},
		{Short: 'E', Long: "setenv", Arg: cli.RequiredArg, Set: o.addEnvironment},
		{Long: "chdir", Arg: cli.RequiredArg, Set: keep(&o.chdir)},
		{Short: 't', Long: "tty", Set: set(&o.tty, true)},
		{Long: "read-only", Set: set(&o.readOnly, true)},
		{Long: "keep-identity", Set: set(&o.keepIdentity, true)},
		{Long: "overlay", Set: set(&o.overlay, true)},
		{Long: "from", Arg: cli.RequiredArg, Set: keep(&o.from)},
		{Long: "mirror", Arg: cli.RequiredArg, Set: keep(&o.mirror)},
		{Long: "keep", Arg: cli.RequiredArg, Set: o.setKeep},
		{Long: "mkdir", Set: set(&o.mkdir, true)},
		{Short: 'n', Long: "lines", Arg: cli.RequiredArg, Set: o.setLines},
		{Long: "max-addresses", Arg: cli.RequiredArg, Set: o.setMaxAddresses},
		{Short: 'o', Long: "output", Arg: cli.RequiredArg, Set: o.setOutput},
		{Long: "force", Set: set(&o.force, true)},
		{Long: "now", Set: set(&o.now, true)},
		{Long: "runner", Arg: cli.RequiredArg, Set: o.setRunner},
		{Short: 'V', Set: func(string) error { o.runner = "vmspawn"; return nil }},
		{Long: "verify", Arg: cli.RequiredArg, Hidden: true, Set: func(arg string) error { return cli.CheckVerify(arg, &o.verify) }},
		{Long: "format", Arg: cli.RequiredArg, Hidden: true, Set: func(arg string) error { return cli.CheckFormat(arg, &o.format) }},
	}
}

func (o *options) addProperty(arg string) error {
	o.properties = append(o.properties, arg)
	// A property that was asked for is shown even when it is empty.
	o.showEmpty = true
	return nil
}

func (o *options) setSignal(arg string) error {
	if arg == "help" || arg == "list" {
		if arg == "list" {
			fmt.Println("SIGNAL NAME")
			for n := 1; n <= 64; n++ {
				fmt.Printf("%-6d SIG%s\n", n, cli.SignalName(n))
			}
			return errDone
		}
		for n := range 65 {
			fmt.Println(cli.SignalName(n))
		}
		return errDone
	}
	n, err := cli.ParseSignal(arg)
	o.signal = n
	return err
}

func (o *options) addEnvironment(arg string) error {
	name, _, assigned := strings.Cut(arg, "=")
	if !validVariable(name) {
		return cli.Failf("Cannot assign environment variable %s: Invalid argument", arg)
	}
	if !assigned {
		value, ok := os.LookupEnv(name)
		if !ok {
			return nil
		}
		arg = name + "=" + value
	}
	o.setenv = slices.DeleteFunc(o.setenv, func(s string) bool { return strings.HasPrefix(s, name+"=") })
	o.setenv = append(o.setenv, arg)
	return nil
}

func validVariable(name string) bool {
	for i, c := range name {
		if c != '_' && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

func (o *options) setLines(arg string) error {
	n, err := strconv.ParseUint(arg, 10, 31)
	if err != nil {
		return cli.Failf("Failed to parse lines '%s'", arg)
	}
	o.lines = uint32(n)
	return nil
}

func (o *options) setKeep(arg string) error {
	n, err := strconv.ParseUint(arg, 10, 30)
	if err != nil {
		return cli.Failf("Failed to parse --keep= number: %s", arg)
	}
	o.keep = uint32(n)
	return nil
}

func (o *options) setMaxAddresses(arg string) error {
	if arg == "all" {
		o.maxAddresses = allAddresses
		return nil
	}
	n, err := strconv.ParseUint(arg, 10, 32)
	if err != nil {
		return cli.Failf("Invalid number of addresses: %s", arg)
	}
	o.maxAddresses = uint32(n)
	return nil
}

func (o *options) setOutput(arg string) error {
	if arg == "help" {
		fmt.Println(strings.Join(outputModes, "\n"))
		return errDone
	}
	if !slices.Contains(outputModes, arg) {
		return cli.Failf("Unknown output '%s'.", arg)
	}
	o.output = arg
	if o.jsonMode() != cli.JSONOff {
		o.legend = false
	}
	return nil
}

func (o *options) setRunner(arg string) error {
	switch arg {
	case "nspawn", "vmspawn":
		o.runner = arg
		return nil
	case "help":
		fmt.Println("nspawn\nvmspawn")
		return errDone
	}
	return cli.Failf("Failed to parse --runner= setting: %s", arg)
}
