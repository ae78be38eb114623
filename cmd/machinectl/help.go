package main

import (
	"context"
	"fmt"
	"strings"

	"machined/internal/cli"
)

func runHelp(a *app, _ context.Context, _ []string) error {
	a.help()
	return nil
}

func (a *app) help() {
	out := a.page()
	fmt.Fprintf(out, "machinectl [OPTIONS...] COMMAND ...\n\n%s\n",
		a.term.Paint(cli.StyleBold, "Send control commands to or query the virtual machine and container\nregistration manager."))
	group := ""
	for _, v := range verbs {
		if v.hidden {
			continue
		}
		if v.group != group {
			group = v.group
			fmt.Fprintf(out, "\n%s\n", a.term.Paint(cli.StyleUnderline, group+":"))
		}
		helpLine(out, strings.TrimSpace(v.name+" "+v.usage), v.short)
	}
	fmt.Fprintf(out, "\n%s\n%s", a.term.Paint(cli.StyleUnderline, "Options:"), optionsHelp)
	fmt.Fprintln(out, "\nSee the machinectl(1) man page for details.")
}

func helpLine(out *cli.Output, left, right string) {
	const column, width = 28, 52
	if len(left) >= column-2 {
		fmt.Fprintf(out, "  %s\n", left)
		left = ""
	}
	for right != "" {
		line := right
		if len(line) > width {
			line = line[:strings.LastIndexByte(line[:width], ' ')]
		}
		fmt.Fprintf(out, "  %-*s%s\n", column, left, line)
		left, right = "", strings.TrimSpace(right[len(line):])
	}
}

const optionsHelp = `  -h --help                   Show this help
     --version                Show package version
     --no-pager               Do not pipe output into a pager
     --no-legend              Do not show the headers and footers
     --no-ask-password        Do not ask for system passwords
  -H --host=[USER@]HOST       Operate on remote host
  -M --machine=CONTAINER      Operate on local container
     --user                   Connect to the user's own machine manager
     --system                 Connect to the system's machine manager
  -p --property=NAME          Show only properties by this name
     --value                  When showing properties, only print the value
  -P NAME                     Equivalent to --value --property=NAME
  -q --quiet                  Suppress output
  -a --all                    Show all properties, including empty ones
  -l --full                   Do not ellipsize output
     --kill-whom=WHOM         Whom to send signal to
  -s --signal=SIGNAL          Which signal to send
  -u --uid=USER               Specify user ID to invoke shell or exec as
  -E --setenv=VAR[=VALUE]     Add an environment variable for shell or exec
     --chdir=PATH             Directory in which exec runs the command
  -t --tty                    Give the command of exec a terminal
     --read-only              Create read-only bind mount or clone
     --keep-identity          Leave machine ID and host name as they are in a
                              clone
     --from=DISTRIBUTION[:RELEASE]
                              What create makes an image of
     --mirror=URL             Where create gets packages
     --overlay                Clone at once, sharing files by overlayfs
     --keep=INTEGER           Number of snapshots that prune leaves
     --mkdir                  Create directory before bind mounting, if missing
  -n --lines=INTEGER          Number of journal entries to show
     --max-addresses=INTEGER  Number of internet addresses to show at most
  -o --output=STRING          Change journal output mode (short, short-precise,
                               short-iso, short-iso-precise, short-full,
                               short-monotonic, short-unix, short-delta,
                               json, json-pretty, json-sse, json-seq, cat,
                               verbose, export, with-unit)
     --force                  Replace target file when copying, if necessary
     --now                    Start or power off container after enabling or
                              disabling it
     --runner=RUNNER          Select between nspawn and vmspawn as the runner
  -V                          Short for --runner=vmspawn
`
