// Command machinectl shows and controls machines and their images. It is a
// client of org.freedesktop.machine1 and nothing else; machinectl(1).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"machined/internal/cli"
)

// version is stamped by the build.
var version = "devel"

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	a := newApp(cli.DetectTerminal())
	err := a.execute(ctx, args)
	a.close()
	var usage *cli.UsageError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, cli.ErrReported):
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, usage.Text)
	default:
		a.term.Error("%s", err)
	}
	return 1
}
