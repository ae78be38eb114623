package main

import (
	"context"

	"machined/internal/cli"
)

// transferVerb runs one of importctl's verbs on machine images.
func transferVerb(name string) func(*app, context.Context, []string) error {
	return func(a *app, ctx context.Context, args []string) error {
		session := &cli.Transfers{
			Terminal: a.term, Target: a.opts.target, Ask: a.opts.ask, Program: "machinectl", Class: "machine",
			Verify: a.opts.verify, Format: a.opts.format, Force: a.opts.force, ReadOnly: a.opts.readOnly,
			Quiet: a.opts.quiet, Legend: a.opts.legend, Full: a.opts.full, NoPager: a.opts.noPager, JSON: a.opts.jsonMode(),
		}
		return session.Run(ctx, name, args)
	}
}
