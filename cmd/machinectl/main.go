// Command machinectl shows and controls machines and their images. It is a
// client of org.freedesktop.machine1 and nothing else; machinectl(1).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"machined/internal/cli"
)

// version is stamped by the build.
var version = "devel"

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	ctx, interrupt := cli.WatchInterrupt(context.Background())
	defer interrupt.Stop()
	a := newApp(cli.DetectTerminal())
	err := a.execute(ctx, args)
	interrupted := ctx.Err() != nil
	a.close()
	var usage *cli.UsageError
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.Is(err, cli.ErrReported):
	case interrupted:
		interrupt.Die()
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, usage.Text)
	default:
		a.term.Error("%s", err)
	}
	return 1
}
