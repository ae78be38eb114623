package cli

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

const transferInterface = "org.freedesktop.import1.Transfer"

// follow starts a transfer and shows its log and progress until it ends. The
// end of ctx (Ctrl-C) leaves it running.
func (t *Transfers) follow(ctx context.Context, start func(bus *Bus, id *uint32, object *godbus.ObjectPath) error) error {
	stop, err := t.connect(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if t.Ask && t.Target.Local() {
		defer StartAgent(ctx)()
	}
	// A transfer may write much before its id is known here.
	signals := make(chan *godbus.Signal, 4096)
	t.bus.Conn.Signal(signals)
	for _, match := range []struct{ iface, member string }{
		{Importd.Interface, "TransferRemoved"}, {transferInterface, "LogMessage"}, {transferInterface, "ProgressUpdate"},
	} {
		err := t.bus.Conn.AddMatchSignalContext(ctx, godbus.WithMatchSender(Importd.Service),
			godbus.WithMatchInterface(match.iface), godbus.WithMatchMember(match.member))
		if err != nil {
			return Because("Failed to watch transfers", err)
		}
	}
	var id uint32
	var object godbus.ObjectPath
	if err := start(t.bus, &id, &object); err != nil {
		return Because("Failed to transfer image", err)
	}
	owner, err := t.watchService(ctx)
	if err != nil {
		return err
	}
	view := newProgress(t.Terminal, t.Quiet)
	view.size.Store(t.size)
	defer view.close()
	view.log(6, fmt.Sprintf("Enqueued transfer job %d. Press C-c to continue download in background.", id))
	for {
		select {
		case <-ctx.Done():
			view.close()
			if !t.Quiet {
				t.Terminal.Info("Continuing download in the background. Use \"%s cancel-transfer %d\" to abort transfer.", t.Program, id)
			}
			return ErrReported
		case signal, ok := <-signals:
			if !ok {
				return errBusLost
			}
			if leaves(signal, owner) {
				return errServiceGone
			}
			result, ended := view.take(signal, id, object)
			if !ended {
				continue
			}
			if result != "done" {
				return ErrReported
			}
			return nil
		}
	}
}

const busInterface = "org.freedesktop.DBus"

// errBusLost is told where the end of a transfer cannot be heard.
var errBusLost = Failf("Lost the connection to the bus; the transfer may go on in the background.")

// errServiceGone is told where nobody can tell any more how a transfer ends.
var errServiceGone = Failf("The transfer service has ended before the transfer was done.")

// watchService has the end of the service that does the transfer come as a signal,
// too: it then tells no end of the transfer. owner is its name on the bus.
func (t *Transfers) watchService(ctx context.Context) (owner string, err error) {
	bus := t.bus.Conn.BusObject()
	if err := bus.CallWithContext(ctx, busInterface+".GetNameOwner", 0, Importd.Service).Store(&owner); err != nil {
		return "", errServiceGone
	}
	err = t.bus.Conn.AddMatchSignalContext(ctx, godbus.WithMatchSender(busInterface), godbus.WithMatchInterface(busInterface),
		godbus.WithMatchMember("NameOwnerChanged"), godbus.WithMatchArg(0, owner))
	if err != nil {
		return "", Because("Failed to watch transfers", err)
	}
	there := false
	if err := bus.CallWithContext(ctx, busInterface+".NameHasOwner", 0, owner).Store(&there); err != nil || !there {
		return "", errServiceGone
	}
	return owner, nil
}

// leaves says whether a signal tells that the one with the unique name owner is gone.
func leaves(signal *godbus.Signal, owner string) bool {
	var name, old, now string
	return signal.Name == busInterface+".NameOwnerChanged" && godbus.Store(signal.Body, &name, &old, &now) == nil && name == owner && now == ""
}

// progress shows one transfer: its log as lines, and a bar below them on a
// terminal once the service tells how far it is.
type progress struct {
	term  *Terminal
	quiet bool
	bar   *Bar
	size  atomic.Uint64 // of what comes, in bytes; 0: not known yet
}

func newProgress(term *Terminal, quiet bool) *progress { return &progress{term: term, quiet: quiet} }

// take handles one signal; ended is set when it is the end of the transfer.
func (p *progress) take(signal *godbus.Signal, id uint32, object godbus.ObjectPath) (result string, ended bool) {
	switch signal.Name {
	case Importd.Interface + ".TransferRemoved":
		var removed uint32
		var path godbus.ObjectPath
		if godbus.Store(signal.Body, &removed, &path, &result) == nil && removed == id {
			return result, true
		}
	case transferInterface + ".LogMessage":
		var priority uint32
		var line string
		if signal.Path == object && godbus.Store(signal.Body, &priority, &line) == nil {
			p.log(priority, Printable(line, false))
		}
	case transferInterface + ".ProgressUpdate":
		var fraction float64
		if signal.Path == object && godbus.Store(signal.Body, &fraction) == nil {
			p.update(fraction)
		}
	}
	return "", false
}

// log prints a line of a syslog priority; quiet leaves warnings and worse. Stock's
// service tells the facility, too.
func (p *progress) log(priority uint32, line string) {
	priority &= 7
	if p.quiet && priority > 4 {
		return
	}
	if size := announced(line); size > 0 {
		p.size.Store(size)
	}
	style := StyleNone
	switch {
	case priority <= 3:
		style = StyleRed
	case priority <= 5:
		style = StyleBold
	}
	if p.bar != nil {
		if p.term.ErrColor && style != StyleNone {
			line = string(style) + line + styleOff
		}
		if p.bar.Print(line) {
			return
		}
	}
	p.term.log(style, "%s", line)
}

func (p *progress) update(fraction float64) {
	if fraction < 0 || fraction > 1 || p.quiet || !p.term.ErrTTY {
		return
	}
	if p.bar == nil {
		started := time.Now()
		// The service tells shares, not bytes; those stand in its lines.
		p.bar = NewBar("Total: ", func(fraction float64) string { return rate(fraction, p.size.Load(), time.Since(started)) })
	}
	p.bar.Set(fraction)
}

func (p *progress) close() {
	if p.bar != nil {
		p.bar.Close()
		p.bar = nil
	}
}

// announced reads the size from the line by which the service says that it
// begins to download something; 0 is any other line.
func announced(line string) uint64 {
	rest, ok := strings.CutPrefix(line, "Downloading ")
	if !ok {
		return 0
	}
	size, _, _ := strings.Cut(rest, " for ")
	n, err := ParseSize(size)
	if err != nil {
		return 0
	}
	return n
}

// rate is the mean speed of a transfer.
func rate(fraction float64, size uint64, elapsed time.Duration) string {
	if elapsed < time.Second || size == 0 {
		return ""
	}
	return fmt.Sprintf(" %s/s ", FormatBytes(uint64(fraction*float64(size)/elapsed.Seconds())))
}
