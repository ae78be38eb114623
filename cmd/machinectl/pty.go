package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"machined/dbus/machine1"
	"machined/internal/cli"
	"machined/internal/ptyfwd"
)

const hostMachine = ".host"

func runLogin(a *app, ctx context.Context, args []string) error {
	if len(a.opts.setenv) > 0 || a.opts.uid != "" {
		return cli.Failf("--setenv= and --uid= are not supported for 'login'. Use 'shell' instead.")
	}
	name := hostMachine
	if len(args) > 0 && args[0] != "" {
		name = args[0]
	}
	// Watched before the login is opened, so that an early end is seen.
	signals := make(chan *godbus.Signal, 64)
	a.bus.Conn.Signal(signals)
	err := a.bus.Conn.AddMatchSignalContext(ctx, godbus.WithMatchSender(machine1.BusName),
		godbus.WithMatchInterface(machine1.ManagerInterface), godbus.WithMatchMember("MachineRemoved"),
		godbus.WithMatchArg(0, name))
	if err != nil {
		return cli.Because("Failed to request machine removal match", err)
	}
	var fd godbus.UnixFD
	var path string
	if err := a.bus.Call(ctx, cli.Manager, "OpenMachineLogin", []any{name}, &fd, &path); err != nil {
		return cli.Because("Failed to get login PTY", err)
	}
	return a.forward(ctx, name, fd, signals, ptyfwd.Options{IgnoreVHangup: true})
}

func runShell(a *app, ctx context.Context, args []string) error {
	machine, user := hostMachine, a.opts.uid
	if len(args) > 0 && args[0] != "" {
		machine = args[0]
		if before, after, ok := strings.Cut(args[0], "@"); ok {
			if before == "" {
				return cli.Failf("Failed to parse machine specification: Invalid argument")
			}
			if user, machine = before, after; machine == "" {
				machine = hostMachine
			}
		}
	}
	path, command := "", []string{}
	if len(args) > 1 {
		path = args[1]
	}
	if len(args) > 2 {
		command = args[1:]
	}
	var fd godbus.UnixFD
	var tty string
	if err := a.bus.Call(ctx, cli.Manager, "OpenMachineShell", []any{machine, user, path, command, a.shellEnvironment()}, &fd, &tty); err != nil {
		return cli.Because("Failed to get shell PTY", err)
	}
	return a.forward(ctx, machine, fd, nil, ptyfwd.Options{})
}

// shellEnvironment is what the shell gets: the given variables, and those that
// describe the terminal it will draw on. Where there is none, its programs must
// not draw: what reads the output would get their sequences.
func (a *app) shellEnvironment() []string {
	env := slices.Clone(a.opts.setenv)
	if env == nil {
		env = []string{}
	}
	if a.term.Dumb() {
		if !slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, "TERM=") }) {
			env = append(env, "TERM=dumb")
		}
		return env
	}
	for _, name := range []string{"TERM", "COLORTERM", "NO_COLOR"} {
		value, ok := os.LookupEnv(name)
		given := slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, name+"=") })
		if ok && !given {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// forward relays between the person and the PTY until one of them ends. With
// signals, the end of the machine ends it too.
func (a *app) forward(ctx context.Context, name string, fd godbus.UnixFD, signals chan *godbus.Signal, opts ptyfwd.Options) error {
	master := os.NewFile(uintptr(fd), "pty of "+name)
	defer master.Close()
	where := "machine " + name
	if name == hostMachine {
		where = "the local host"
	}
	a.info("Connected to %s. Press ^] three times within 1s to exit session.", where)
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
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if signals != nil {
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case signal, ok := <-signals:
					if !ok || signal.Name == machine1.ManagerInterface+".MachineRemoved" {
						forwarder.SetIgnoreVHangup(false)
						return
					}
				}
			}
		}()
	}
	result, err := forwarder.Run(ctx)
	if err != nil {
		return cli.Because("Failed to run PTY forwarder", err)
	}
	if a.term.OutTTY && os.Getenv("TERM") != "dumb" {
		// What the machine left switched on ends here.
		fmt.Print("\x1b[0m\x1b[J")
	}
	switch {
	case opts.IgnoreVHangup && result.Hangup:
		a.info("Machine %s terminated.", name)
	default:
		a.info("Connection to %s terminated.", where)
	}
	return nil
}

// endInterval is how often the end of input is repeated; startLimit how long
// input waits for somebody to take the terminal.
const (
	endInterval = 500 * time.Millisecond
	startLimit  = 2 * time.Second
)

// awaitReader waits until a process has made the terminal its own: input that
// comes earlier is thrown away when the terminal is set up. The kernel has no
// event for it.
func awaitReader(master *os.File) {
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for end := time.Now().Add(startLimit); time.Now().Before(end); <-poll.C {
		if group, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPGRP); err == nil && group != 0 {
			return
		}
	}
}

// stdinWithEnd is standard input followed by the character that ends a
// terminal's input, and then silence: what runs in the machine sees the end of
// its input, and its last output is not cut off.
func stdinWithEnd(master *os.File) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, cli.Because("Failed to create pipe", err)
	}
	go func() {
		// At a line's start one end-of-file character ends the input; within a
		// line the first only sends what was typed (termios(3), VEOF).
		buffer, end := make([]byte, 4096), "\x04"
		awaitReader(master)
		for {
			n, err := os.Stdin.Read(buffer)
			if n > 0 {
				if _, writeErr := w.Write(buffer[:n]); writeErr != nil {
					return
				}
				if end = "\x04"; buffer[n-1] != '\n' {
					end = "\x04\x04"
				}
			}
			if err == nil {
				continue
			}
			// What is started on the terminal may flush its input first, so the end
			// is said again until the other side has gone; nothing tells when.
			for again := time.NewTicker(endInterval); ; <-again.C {
				if _, err := w.WriteString(end); err != nil {
					return
				}
				end = "\x04"
			}
		}
	}()
	return r, nil
}

// lookEditor finds the program to edit a file with.
func lookEditor() []string {
	for _, name := range []string{"SYSTEMD_EDITOR", "EDITOR", "VISUAL"} {
		if words := strings.Fields(os.Getenv(name)); len(words) > 0 {
			return words
		}
	}
	for _, name := range []string{"editor", "nano", "vim", "vi"} {
		if path, err := exec.LookPath(name); err == nil {
			return []string{path}
		}
	}
	return nil
}
