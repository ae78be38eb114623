// Command importctl downloads, imports and exports images. It is a client of
// org.freedesktop.import1 and nothing else; importctl(1).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"machined/internal/cli"
	"machined/internal/release"
)

// version is stamped by the build.
var version = "devel"

// errDone ends option parsing when an option has done all the work.
var errDone = errors.New("done")

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	ctx, interrupt := cli.WatchInterrupt(context.Background())
	defer interrupt.Stop()
	term := cli.DetectTerminal()
	err := execute(ctx, term, args)
	var usage *cli.UsageError
	switch {
	case err == nil, errors.Is(err, errDone):
		return 0
	case errors.Is(err, cli.ErrReported):
	case ctx.Err() != nil:
		interrupt.Die()
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, usage.Text)
	default:
		term.Error("%s", err)
	}
	return 1
}

func execute(ctx context.Context, term *cli.Terminal, args []string) error {
	t := &cli.Transfers{Terminal: term, Program: "importctl", Ask: true, Legend: true}
	parser := cli.Options{Program: "importctl", Table: options(t)}
	words, err := parser.Parse(args)
	if err != nil {
		return err
	}
	if len(words) == 0 {
		words = []string{"list-transfers"}
	}
	if words[0] == "help" {
		return showHelp(t)
	}
	if !slices.Contains(cli.TransferVerbs, words[0]) {
		if near := cli.Closest(words[0], append([]string{"help"}, cli.TransferVerbs...)); near != "" {
			return cli.Failf("Unknown command verb '%s', did you mean '%s'?", words[0], near)
		}
		return cli.Failf("Unknown command verb '%s'.", words[0])
	}
	return t.Run(ctx, words[0], words[1:])
}

func options(t *cli.Transfers) []cli.Option {
	on := func(b *bool) func(string) error { return func(string) error { *b = true; return nil } }
	off := func(b *bool) func(string) error { return func(string) error { *b = false; return nil } }
	class := func(name string) func(string) error { return func(string) error { t.Class = name; return nil } }
	return []cli.Option{
		{Short: 'h', Long: "help", Set: func(string) error {
			if err := showHelp(t); err != nil {
				return err
			}
			return errDone
		}},
		{Long: "version", Set: func(string) error { fmt.Print(release.Text("importctl", version)); return errDone }},
		{Long: "no-pager", Set: on(&t.NoPager)},
		{Long: "no-legend", Set: off(&t.Legend)},
		{Long: "no-ask-password", Set: off(&t.Ask)},
		{Short: 'H', Long: "host", Arg: cli.RequiredArg, Set: t.Target.SetHost},
		{Short: 'M', Long: "machine", Arg: cli.RequiredArg, Set: t.Target.SetMachine},
		{Long: "user", Set: on(&t.Target.User)},
		{Long: "system", Set: off(&t.Target.User)},
		{Long: "read-only", Set: on(&t.ReadOnly)},
		{Short: 'q', Long: "quiet", Set: on(&t.Quiet)},
		{Long: "json", Arg: cli.RequiredArg, Set: func(arg string) error { return setJSON(t, arg) }},
		{Short: 'j', Set: func(string) error {
			if t.Terminal.OutTTY {
				return setJSON(t, "pretty")
			}
			return setJSON(t, "short")
		}},
		{Long: "verify", Arg: cli.RequiredArg, Set: func(arg string) error { return cli.CheckVerify(arg, &t.Verify) }},
		{Long: "format", Arg: cli.RequiredArg, Set: func(arg string) error { return cli.CheckFormat(arg, &t.Format) }},
		{Long: "force", Set: on(&t.Force)},
		{Long: "class", Arg: cli.RequiredArg, Set: func(arg string) error { return setClass(t, arg) }},
		{Short: 'm', Set: class("machine")},
		{Short: 'P', Set: class("portable")},
		{Short: 'S', Set: class("sysext")},
		{Short: 'C', Set: class("confext")},
		{Long: "keep-download", Arg: cli.RequiredArg, Set: func(arg string) error {
			keep, err := cli.ParseBool(arg)
			if err != nil {
				return cli.Failf("Failed to parse --keep-download= value: %s", arg)
			}
			t.KeepDownload = &keep
			return nil
		}},
		{Short: 'N', Set: func(string) error { keep := false; t.KeepDownload = &keep; return nil }},
	}
}

func setJSON(t *cli.Transfers, arg string) error {
	switch arg {
	case "pretty":
		t.JSON = cli.JSONPretty
	case "short":
		t.JSON = cli.JSONShort
	case "off":
		t.JSON = cli.JSONOff
	case "help":
		fmt.Println("pretty\nshort\noff")
		return errDone
	default:
		return cli.Failf("Unknown argument to --json= switch: %s", arg)
	}
	return nil
}

func setClass(t *cli.Transfers, arg string) error {
	var names []string
	for _, class := range cli.Classes {
		if class.Name == arg {
			t.Class = arg
			return nil
		}
		names = append(names, class.Name)
	}
	return cli.Failf("Failed to parse --class= parameter: %s (want one of %s)", arg, strings.Join(names, ", "))
}
