// Command machine-spawn boots an OS tree or disk image as a machine, or runs one
// command in it. It is also systemd-nspawn, with the same command line.
//
// It owns the command line, the settings file and the way to machined and PID 1;
// what a machine is made of is package spawn. The same binary is executed again
// as the machine's first process, before anything here runs.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"machined/spawn"
	"machined/spawn/settings"
	"machined/spawn/stage"
)

// version is stamped by the linker (-X main.version=...).
var version = "devel"

func init() {
	// The stage belongs to the main thread, which init functions run on. And
	// the supervisor's main goroutine keeps it, so that no other goroutine can
	// take it into another mount namespace: /proc/self is the main thread's.
	// It does nothing else: passing work to and from a locked thread is slow.
	runtime.LockOSThread()
	if stage.IsStage() {
		stage.Main()
	}
}

func main() {
	go supervise()
	select {}
}

// supervise does what the command line says, and ends the program.
func supervise() {
	code, err := 0, error(nil)
	state, parent, again, ok := spawn.Waking()
	var earlier *spawn.Earlier
	if ok && again {
		earlier, err = spawn.Again(state)
	}
	switch {
	case ok && !again:
		err = spawn.WakeUp(state, parent, streams(), newBus())
	case err == nil:
		code, err = run(os.Args[1:], earlier)
	}
	if errors.Is(err, errDone) {
		os.Exit(0)
	}
	if i := (*spawn.Interrupted)(nil); errors.As(err, &i) {
		// As if the signal had never been caught: whoever sent it sees that.
		signal.Reset(i.Signal)
		if sig, ok := i.Signal.(syscall.Signal); ok && syscall.Kill(os.Getpid(), sig) == nil {
			select {}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, inWords(err))
		os.Exit(1)
	}
	os.Exit(code)
}

// run does what args say. earlier is of the run before, when a machine reboots.
func run(args []string, earlier *spawn.Earlier) (int, error) {
	if os.Args[0] == spawn.GiveBackName && len(args) == 1 {
		return 0, spawn.GiveBack(args[0])
	}
	c, err := parse(args)
	if err != nil {
		return 1, err
	}
	if os.Geteuid() != 0 {
		return 1, errors.New("Need to be root. (Users without privileges would need systemd-nsresourced, which this program does not speak to; machinectl start asks polkit instead.)")
	}
	if err := c.bundle(); err != nil {
		return 1, err
	}
	if err := c.findImage(); err != nil {
		return 1, err
	}
	if err := c.settingsFile(); err != nil {
		return 1, err
	}
	o := &c.opts
	if !c.mask[maskUserns] && !c.usersSaid {
		o.NestingUsers()
	}
	if o.UsersIfAble {
		if _, err := os.Stat("/proc/self/ns/user"); err != nil {
			o.Users, o.Ownership = settings.PrivateUsers{}, "off"
		}
	}
	if o.Console == "pipe" || o.Console == "autopipe" && !terminals() {
		// The payload has our standard error: what we say would be between its words.
		o.Quiet = true
	}
	o.Implied()
	if o.Boot() && o.KillSignal == 0 {
		o.KillSignal = unix.Signal(34 + 3) // SIGRTMIN+3
	}
	if err := o.Validate(); err != nil {
		return 1, err
	}
	if o.Cleanup {
		return 0, spawn.CleanUp(o.Machine)
	}
	bus := newBus()
	if o.Register || !o.KeepUnit {
		bus.warm()
	}
	return spawn.Run(context.Background(), o, streams(), bus, earlier)
}

// terminals tells whether standard input and output are terminals.
func terminals() bool {
	for _, fd := range []int{0, 1} {
		if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
			return false
		}
	}
	return true
}

func streams() spawn.Streams {
	s := spawn.Streams{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Log: os.Stderr}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err == nil && n > 0 && n < 1024 && os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) {
		for fd := range n {
			unix.CloseOnExec(3 + fd)
			s.Inherit = append(s.Inherit, os.NewFile(uintptr(3+fd), "LISTEN_FD_"+strconv.Itoa(3+fd)))
		}
	}
	return s
}

// findImage completes image and machine name from each other.
func (c *commandLine) findImage() error {
	o := &c.opts
	if o.Directory == "" && o.Image == "" && o.MStack == "" {
		switch {
		case o.Machine != "" && o.Template != "":
			o.Directory = filepath.Join("/var/lib/machines", o.Machine)
		case o.Machine != "" && !o.Cleanup:
			p, raw, ok := spawn.FindImage(o.Machine)
			if !ok {
				return fmt.Errorf("No image for machine '%s'.", o.Machine)
			}
			switch {
			case raw:
				o.Image = p
			case spawn.IsStack(p):
				o.MStack = p
			default:
				o.Directory = p
			}
		case o.Machine == "" && o.Template != "" && o.Ephemeral:
			o.Directory, o.Template = o.Template, ""
			if !strings.Contains(o.Directory, "/") {
				p, raw, ok := spawn.FindImage(o.Directory)
				if !ok || raw || spawn.IsStack(p) {
					return fmt.Errorf("No image for machine '%s'.", o.Directory)
				}
				o.Directory = p
			}
		case o.Machine == "":
			wd, err := os.Getwd()
			if err != nil {
				return fmt.Errorf("Failed to determine path, please use -D or -i: %w", err)
			}
			o.Directory = wd
		}
	}
	if err := c.pickVersions(); err != nil {
		return err
	}
	c.imagePath = o.Directory
	if o.Image != "" {
		c.imagePath = o.Image
	}
	if o.MStack != "" {
		c.imagePath = o.MStack
	}
	c.settingsName = o.Machine
	if o.Machine == "" {
		o.Machine = spawn.ImageName(strings.TrimSuffix(c.imagePath, ".mstack"), o.Image != "")
		if !spawn.ValidMachineName(o.Machine) {
			return errors.New("Failed to determine machine name automatically, please use -M.")
		}
		c.settingsName = o.Machine
		if o.Ephemeral {
			// Many may run at once; the settings are those of the plain name.
			suffix := "-" + randomSuffix()
			o.Machine = strings.TrimRight(o.Machine[:min(len(o.Machine), 64-len(suffix))], ".-") + suffix
		}
	}
	if o.Cleanup {
		return nil
	}
	return c.preflight()
}

// preflight refuses a missing image, and a busy one, before anything else is said.
func (c *commandLine) preflight() error {
	o := &c.opts
	if o.Template != "" {
		return nil
	}
	st, err := os.Stat(c.imagePath)
	if err != nil {
		return fmt.Errorf("Failed to resolve path %s: %w", c.imagePath, errors.Unwrap(err))
	}
	if o.Directory != "" && !st.IsDir() {
		return fmt.Errorf("%s is not a directory; disk images are given with --image=", c.imagePath)
	}
	return nil
}
