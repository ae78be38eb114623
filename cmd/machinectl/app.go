package main

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"machined/internal/cli"
)

// app is one run of machinectl: its options and what it has opened.
type app struct {
	term *cli.Terminal
	opts options
	bus  *cli.Bus
	out  *cli.Output
	undo []func()
}

func newApp(term *cli.Terminal) *app {
	a := &app{term: term}
	a.opts.defaults()
	return a
}

// verb is one row of the command table.
type verb struct {
	name     string
	alias    string // other name for the same
	usage    string // arguments, for the manual and the help
	short    string
	group    string
	min, max int // number of arguments; max < 0: any
	hidden   bool
	changes  bool // may need a password: the polkit agent is started
	offline  bool // needs no bus
	// localOnly is what to say when the verb, which needs a descriptor of the
	// service's, is used on another host; "" if it does not.
	localOnly string
	run       func(a *app, ctx context.Context, args []string) error
}

// errDone ends option parsing when an option has done all the work.
var errDone = errors.New("done")

func (a *app) execute(ctx context.Context, args []string) error {
	root := a.commands(ctx)
	if len(args) > 0 && strings.HasPrefix(args[0], "__complete") {
		root.SetArgs(args)
		return root.Execute()
	}
	parser := cli.Options{Program: "machinectl", Table: a.opts.table(a), Stop: func(words []string) bool {
		// The rest is the command that is to run there.
		return (words[0] == "shell" || words[0] == "exec") && len(words) == 2
	}}
	words, err := parser.Parse(args)
	if errors.Is(err, errDone) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(words) == 0 {
		words = []string{"list"}
	}
	v := findVerb(words[0])
	if v == nil {
		if near := cli.Closest(words[0], verbNames()); near != "" {
			return cli.Failf("Unknown command verb '%s', did you mean '%s'?", words[0], near)
		}
		return cli.Failf("Unknown command verb '%s'.", words[0])
	}
	if len(words)-1 < v.min {
		return cli.Failf("Too few arguments.")
	}
	if v.max >= 0 && len(words)-1 > v.max {
		return cli.Failf("Too many arguments.")
	}
	root.SetArgs(append([]string{v.name}, words[1:]...))
	return root.Execute()
}

// commands is the table as cobra commands; options are parsed before, by
// stock's rules.
func (a *app) commands(ctx context.Context) *cobra.Command {
	root := &cobra.Command{Use: "machinectl", SilenceErrors: true, SilenceUsage: true, DisableFlagParsing: true}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true})
	for i := range verbs {
		v := &verbs[i]
		root.AddCommand(&cobra.Command{
			Use: v.name + " " + v.usage, Short: v.short, Hidden: v.hidden, DisableFlagParsing: true,
			ValidArgsFunction: func(_ *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
				return a.complete(ctx, v, args, prefix), cobra.ShellCompDirectiveNoFileComp
			},
			RunE: func(_ *cobra.Command, args []string) error {
				if err := a.prepare(ctx, v); err != nil {
					return err
				}
				return v.run(a, ctx, args)
			},
		})
	}
	return root
}

// prepare opens what a verb needs.
func (a *app) prepare(ctx context.Context, v *verb) error {
	if v.offline {
		return nil
	}
	if v.localOnly != "" && !a.opts.target.PassesFiles() {
		return cli.Failf("%s", v.localOnly)
	}
	if err := a.connect(ctx); err != nil {
		return err
	}
	if v.changes {
		a.startAgent(ctx)
	}
	return nil
}

func (a *app) connect(ctx context.Context) error {
	conn, err := a.opts.target.Connect(ctx)
	if err != nil {
		return err
	}
	a.bus = &cli.Bus{Conn: conn, Ask: a.opts.ask}
	a.undo = append(a.undo, func() { _ = conn.Close() })
	return nil
}

func (a *app) startAgent(ctx context.Context) {
	if a.opts.ask && a.opts.target.Local() && !a.opts.target.User {
		a.undo = append(a.undo, cli.StartAgent(ctx))
	}
}

// page sends standard output through the pager from here on.
func (a *app) page() *cli.Output {
	if a.out == nil {
		a.out = cli.OpenOutput(a.term, a.opts.noPager)
		out := a.out
		a.undo = append(a.undo, func() { _ = out.Close() })
	}
	return a.out
}

func (a *app) close() {
	for _, undo := range slices.Backward(a.undo) {
		undo()
	}
	a.undo = nil
}

func (a *app) info(format string, args ...any) {
	if !a.opts.quiet {
		a.term.Info(format, args...)
	}
}

// layout is how tables are drawn with the present options.
func (a *app) layout() cli.Layout {
	return cli.Layout{Terminal: a.term, Legend: a.opts.legend, Full: a.opts.full || a.page().Paged}
}

func findVerb(name string) *verb {
	for i := range verbs {
		if name != "" && (verbs[i].name == name || verbs[i].alias == name) {
			return &verbs[i]
		}
	}
	return nil
}

func verbNames() []string {
	var names []string
	for _, v := range verbs {
		names = append(names, v.name)
		if v.alias != "" {
			names = append(names, v.alias)
		}
	}
	return names
}
