package cli

import (
	"context"
	"os"
	"os/signal"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Interrupt turns the first SIGINT or SIGTERM into the end of a context, so
// that what was opened is put back before the program ends.
type Interrupt struct {
	caught atomic.Int32
	stop   func()
}

// WatchInterrupt starts to watch; the context ends with the first signal.
func WatchInterrupt(parent context.Context) (context.Context, *Interrupt) {
	ctx, cancel := context.WithCancel(parent)
	i := &Interrupt{}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	i.stop = func() { signal.Stop(signals); cancel() }
	go func() {
		select {
		case caught := <-signals:
			i.caught.Store(int32(caught.(unix.Signal)))
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, i
}

// Stop ends the watch. Signals do again what they do by default.
func (i *Interrupt) Stop() { i.stop() }

// Die ends the program by the signal that was caught, as if it had not been,
// so that a shell knows. It returns when there was none.
func (i *Interrupt) Die() {
	caught := i.caught.Load()
	if caught == 0 {
		return
	}
	i.stop()
	signal.Reset(unix.Signal(caught))
	_ = unix.Kill(os.Getpid(), unix.Signal(caught))
	select {}
}
