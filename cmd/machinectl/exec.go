package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"machined/internal/cli"
	"machined/internal/ptyfwd"
)

// exitStatus is the error of a program in a machine that did not end with 0: ours
// shall be the same. What there is to say has been said.
type exitStatus int

func (s exitStatus) Error() string { return "exit status " + strconv.Itoa(int(s)) }

// Statuses of a program that a signal ended, and of one whose end is not known.
const (
	signalStatus = 128
	lostStatus   = 125
)

func runExec(a *app, ctx context.Context, args []string) error {
	user, machine, ok := strings.Cut(args[0], "@")
	if !ok {
		user, machine = a.opts.uid, args[0]
	}
	options := map[string]godbus.Variant{}
	if user != "" {
		options["User"] = godbus.MakeVariant(user)
	}
	env := a.opts.setenv
	if a.opts.tty {
		env = a.shellEnvironment()
	}
	if len(env) > 0 {
		options["Environment"] = godbus.MakeVariant(env)
	}
	if a.opts.chdir != "" {
		options["WorkingDirectory"] = godbus.MakeVariant(a.opts.chdir)
	}
	// Caught from here on: the program gets them, and its end is ours.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCONT)
	defer signal.Stop(signals)
	if a.opts.tty {
		return a.execTerminal(ctx, machine, args[1:], options, signals)
	}
	relays, err := newRelays()
	if err != nil {
		return err
	}
	var control godbus.UnixFD
	fds := relays.descriptors()
	err = a.bus.Call(ctx, cli.OwnManager, "ExecMachine", []any{machine, args[1:], options, fds[0], fds[1], fds[2]}, &control)
	relays.started()
	if err != nil {
		return cli.Because("Failed to run program", err)
	}
	status, err := follow(os.NewFile(uintptr(control), "control"), signals)
	relays.drain()
	return ended(status, err)
}

func (a *app) execTerminal(ctx context.Context, machine string, command []string, options map[string]godbus.Variant, signals chan os.Signal) error {
	var control, fd godbus.UnixFD
	var path string
	err := a.bus.Call(ctx, cli.OwnManager, "ExecMachineTerminal", []any{machine, command, options}, &control, &fd, &path)
	if err != nil {
		return cli.Because("Failed to run program", err)
	}
	master := os.NewFile(uintptr(fd), path)
	defer master.Close()
	opts := ptyfwd.Options{}
	if !term.IsTerminal(0) {
		stdin, err := stdinWithEnd(master)
		if err != nil {
			return err
		}
		defer stdin.Close()
		opts.Stdin = stdin
	}
	forwarder, err := ptyfwd.New(master, opts)
	if err != nil {
		return cli.Because("Failed to create PTY forwarder", err)
	}
	connection := os.NewFile(uintptr(control), "control")
	type result struct {
		status int
		err    error
	}
	done := make(chan result, 1)
	go func() {
		status, err := follow(connection, signals)
		done <- result{status, err}
	}()
	_, err = forwarder.Run(context.WithoutCancel(ctx))
	if err != nil {
		return cli.Because("Failed to run PTY forwarder", err)
	}
	select {
	case r := <-done:
		return ended(r.status, r.err)
	case <-time.After(drainPatience):
		// Disconnected by the hotkey: closing is the hangup for the program.
		_ = connection.Close()
		return exitStatus(signalStatus + int(unix.SIGHUP))
	}
}

// follow passes signals on until the program has ended, and returns its status.
func follow(control *os.File, signals chan os.Signal) (int, error) {
	defer control.Close()
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-signals:
				if n, ok := s.(unix.Signal); ok {
					_, _ = fmt.Fprintf(control, "kill %d\n", n)
				}
			case <-done:
				return
			}
		}
	}()
	line, err := bufio.NewReader(control).ReadString('\n')
	if err != nil {
		return lostStatus, cli.Failf("The machine's supervisor has ended before the program.")
	}
	word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	number, text, _ := strings.Cut(rest, " ")
	n, err := strconv.Atoi(number)
	switch {
	case err != nil:
	case word == "exit":
		return n, nil
	case word == "signal":
		return signalStatus + n, nil
	case word == "error":
		return n, cli.Failf("%s", text)
	}
	return lostStatus, cli.Failf("The machine's supervisor said %q.", line)
}

// ended is the error that makes machinectl end as the program did.
func ended(status int, err error) error {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if status == 0 {
		return nil
	}
	return exitStatus(status)
}

// drainPatience bounds the wait for what a program has written when it has ended:
// another one may hold its streams.
const drainPatience = 2 * time.Second

// relays are the streams that the program gets: our own, but pipes in the place of
// terminals. A terminal of the host's in a machine could be typed into from there.
type relays struct {
	fds    [3]godbus.UnixFD
	theirs []*os.File
	output []chan struct{} // closed at the end of each
}

func newRelays() (*relays, error) {
	r := &relays{}
	for i, f := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		r.fds[i] = godbus.UnixFD(i)
		if _, err := unix.FcntlInt(uintptr(i), unix.F_GETFD, 0); err != nil {
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				return nil, err
			}
			r.give(i, null)
			continue
		}
		if !term.IsTerminal(i) {
			continue
		}
		read, write, err := os.Pipe()
		if err != nil {
			return nil, cli.Because("Failed to create pipe", err)
		}
		if i == 0 {
			r.give(i, read)
			go func() {
				_, _ = io.Copy(write, f)
				_ = write.Close()
			}()
			continue
		}
		r.give(i, write)
		done := make(chan struct{})
		r.output = append(r.output, done)
		go func() {
			defer close(done)
			_, _ = io.Copy(f, read)
		}()
	}
	return r, nil
}

func (r *relays) give(i int, f *os.File) {
	r.fds[i] = godbus.UnixFD(f.Fd())
	r.theirs = append(r.theirs, f)
}

func (r *relays) descriptors() [3]godbus.UnixFD { return r.fds }

// started lets go of what is the program's now, or nobody's.
func (r *relays) started() {
	for _, f := range r.theirs {
		_ = f.Close()
	}
}

func (r *relays) drain() {
	patience := time.After(drainPatience)
	for _, done := range r.output {
		select {
		case <-done:
		case <-patience:
			return
		}
	}
}
