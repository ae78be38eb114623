package spawn

import (
	"context"
	"os"

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
		if t := os.Getenv("TERM"); t != "" && isTerminal(m.io.Stdout) {
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
	fwd    *ptyfwd.Forwarder
	done   chan struct{}
	killed chan struct{}
	tint   string
	out    *os.File
}

func (m *machine) startConsole() *console {
	c := &console{done: make(chan struct{}), killed: make(chan struct{}), out: m.io.Stdout}
	if m.c.Master == nil || m.opts.Console == "passive" {
		close(c.done)
		return c
	}
	fwd, err := ptyfwd.New(m.c.Master, ptyfwd.Options{
		Stdin: m.io.Stdin, Stdout: m.io.Stdout, ReadOnly: m.opts.Console == "read-only",
		IgnoreVHangup: true, IgnoreStdinEOF: true,
		OnHotkey: func(key ptyfwd.Hotkey) {
			sig := sigPoweroff
			if key == ptyfwd.HotkeyReboot {
				sig = sigReboot
			}
			_ = unix.PidfdSendSignal(m.c.PIDFD, sig, nil, 0)
		},
	})
	if err != nil {
		m.warn("Failed to connect the console: %v", err)
		close(c.done)
		return c
	}
	c.fwd = fwd
	if m.opts.Background != "" && isTerminal(m.io.Stdout) {
		c.tint = m.opts.Background
		_, _ = m.io.Stdout.WriteString("\x1b[" + c.tint + "m\x1b[2K")
	}
	go func() {
		defer close(c.done)
		result, err := fwd.Run(context.Background())
		if err == nil && result.Disconnected {
			close(c.killed)
		}
	}()
	return c
}

// finish passes on what is still to be read, after the payload's end.
func (c *console) finish() {
	if c.fwd != nil {
		c.fwd.SetIgnoreVHangup(false)
	}
	<-c.done
	if c.tint != "" {
		_, _ = c.out.WriteString("\x1b[0m\x1b[J")
	}
}
