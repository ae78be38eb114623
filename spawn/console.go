package spawn

import (
	"context"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"machined/internal/ptyfwd"
	"machined/spawn/stage"
)

// Signals by which a person at the console asks systemd for an end (systemd(1)).
const (
	sigReboot   = unix.Signal(34 + 5)
	sigPoweroff = unix.Signal(34 + 4)
)

func isTerminal(f *os.File) bool { return f != nil && term.IsTerminal(int(f.Fd())) }

// planConsole decides what the payload's streams are.
func (m *machine) planConsole() {
	o, p := m.opts, &m.plan
	tty := isTerminal(m.io.Stdin) && isTerminal(m.io.Stdout)
	switch {
	case o.Console == "autopipe" && tty, o.Console == "" && tty:
		o.Console = "interactive"
	case o.Console == "autopipe":
		o.Console = "pipe"
	case o.Console == "":
		o.Console = "read-only"
	}
	if o.Console == "pipe" {
		p.Term = []string{"TERM=dumb"}
		if t := os.Getenv("TERM"); t != "" {
			p.Term = []string{"TERM=" + t}
		}
		return
	}
	p.Console = stage.Console{PTY: true, Attach: true}
	if isTerminal(m.io.Stdout) {
		if w, h, err := term.GetSize(int(m.io.Stdout.Fd())); err == nil {
			p.Console.Cols, p.Console.Rows = uint16(w), uint16(h)
		}
		for _, key := range []string{"TERM", "COLORTERM", "NO_COLOR"} {
			if v, ok := os.LookupEnv(key); ok {
				p.Term = append(p.Term, key+"="+v)
			}
		}
	}
	if len(p.Term) == 0 {
		p.Term = []string{"TERM=vt220"}
		if t := os.Getenv("TERM"); t != "" {
			p.Term = []string{"TERM=" + t}
		}
	}
}

// console relays between the caller's terminal and the machine's.
type console struct {
	fwd    atomic.Pointer[ptyfwd.Forwarder]
	ending atomic.Bool // the payload is gone
	done   chan struct{}
	killed chan struct{}
	tint   string
	out    *os.File
	// discards is set when the output goes nowhere any more.
	discards  atomic.Bool
	detaching atomic.Int32
	moved     uint64        // of fwd, when it was last asked
	result    ptyfwd.Result // of the first forwarder, once done is closed
}

// consoleState is what a console needs to go on where another has been left.
type consoleState struct {
	Terminals []ptyfwd.Terminal
	LastByte  byte
	Tint      string
}

// Values of console.detaching: whether the forwarder is to let go, and has.
const (
	detachNone = iota
	detachWanted
	detachDone
)

// detachPatience is how long a console may take to pass on what it has.
const detachPatience = 100 * time.Millisecond

// calm tells whether nothing was passed on since it was last asked. A console that
// discards is never calm: the next one would try the output again.
func (c *console) calm() bool {
	fwd := c.fwd.Load()
	if fwd == nil {
		return true
	}
	moved := fwd.Moved()
	calm := moved == c.moved && !c.discards.Load()
	c.moved = moved
	return calm
}

// detach ends the console, so that another can go on; nil when it does not let go.
func (c *console) detach() *consoleState {
	fwd := c.fwd.Load()
	if fwd == nil {
		return new(consoleState)
	}
	c.detaching.Store(detachWanted)
	fwd.Detach(true)
	select {
	case <-c.done:
	case <-time.After(detachPatience):
		fwd.Detach(false)
		if c.detaching.CompareAndSwap(detachWanted, detachNone) {
			return nil
		}
		<-c.done // it has followed meanwhile
	}
	if !c.result.Detached {
		return nil
	}
	return &consoleState{Terminals: c.result.Terminals, LastByte: c.result.LastByte, Tint: c.tint}
}

// startConsole goes on where state says, nil for a new console.
func (m *machine) startConsole(state *consoleState) *console {
	c := &console{done: make(chan struct{}), killed: make(chan struct{}), out: m.io.Stdout}
	if m.c.Master == nil {
		close(c.done)
		return c
	}
	if state == nil {
		state = new(consoleState)
	}
	fwd, err := m.forwarder(m.io.Stdout, *state)
	if err != nil {
		m.warn("Failed to connect the console: %v", err)
		close(c.done)
		return c
	}
	c.fwd.Store(fwd)
	if c.tint = state.Tint; c.tint == "" && m.opts.Background != "" && isTerminal(m.io.Stdout) {
		c.tint = m.opts.Background
		_, _ = m.io.Stdout.WriteString("\x1b[" + c.tint + "m\x1b[2K")
	}
	go func() {
		defer close(c.done)
		result, err := fwd.Run(context.Background())
		for result.Detached && !c.detaching.CompareAndSwap(detachWanted, detachDone) {
			// The wish was taken back too late.
			if fwd, err = m.forwarder(m.io.Stdout, consoleState{Terminals: result.Terminals, LastByte: result.LastByte}); err != nil {
				break
			}
			c.fwd.Store(fwd)
			if c.ending.Load() {
				fwd.SetIgnoreVHangup(false)
			}
			result, err = fwd.Run(context.Background())
		}
		c.result = result
		switch {
		case err != nil, result.Detached:
		case result.StdoutClosed && m.opts.KeepUnit:
			c.discards.Store(true)
			m.discard(c)
		case result.Disconnected, result.StdinEOF, result.StdoutClosed:
			// Whoever sat at the console has left, and the machine goes with them.
			close(c.killed)
		}
	}()
	return c
}

func (m *machine) forwarder(out *os.File, state consoleState) (*ptyfwd.Forwarder, error) {
	return ptyfwd.New(m.c.Master, ptyfwd.Options{
		Terminals: state.Terminals, LastByte: state.LastByte,
		Stdin: m.io.Stdin, Stdout: out, ReadOnly: !m.typing(),
		IgnoreVHangup: true,
		OnHotkey: func(key ptyfwd.Hotkey) {
			sig := sigPoweroff
			if key == ptyfwd.HotkeyReboot {
				sig = sigReboot
			}
			_ = unix.PidfdSendSignal(m.c.PIDFD, sig, nil, 0)
		},
	})
}

// typing tells whether what comes on stdin is typed into the machine's console. A file or
// /dev/null, which can't be waited for, is nobody who types, as with stock: its end would end the
// machine at once.
func (m *machine) typing() bool {
	return m.opts.Console == "interactive" && ptyfwd.Pollable(m.io.Stdin)
}

// discard reads on after a service's log is gone: the journal's crash must not
// take the machine with it, nor block it.
func (m *machine) discard(c *console) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer null.Close()
	fwd, err := m.forwarder(null, consoleState{})
	if err != nil {
		return
	}
	c.fwd.Store(fwd)
	if c.ending.Load() {
		fwd.SetIgnoreVHangup(false)
	}
	_, _ = fwd.Run(context.Background())
}

// finish passes on what is still to be read, after the payload's end.
func (c *console) finish() {
	c.ending.Store(true)
	if fwd := c.fwd.Load(); fwd != nil {
		fwd.SetIgnoreVHangup(false)
	}
	<-c.done
	if c.tint != "" {
		_, _ = c.out.WriteString("\x1b[0m\x1b[J")
	}
}
