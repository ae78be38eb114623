package spawn

import (
	"context"
	"io"
	"os"
)

// Registration is what machined and the service manager are told of a machine.
type Registration struct {
	Name       string
	ID         [16]byte
	Leader     int
	Root       string // directory or image file on the host
	NetIf      int    // host's end of the network link, 0: none
	Slice      string
	KillSignal int  // 0: none
	Boot       bool // an init runs in it
	// Devices are device nodes of the host that are bound into the machine.
	Devices    []string
	Properties []string // NAME=VALUE
}

// Registrar is the way to machined and to the service manager.
type Registrar interface {
	// Create registers the machine, in a new scope that the leader is put into.
	Create(ctx context.Context, r Registration) error
	// Register registers the machine in the unit that the leader is in.
	Register(ctx context.Context, r Registration) error
	// Scope makes a scope for the leader without registering. It does nothing
	// where there is no service manager; made tells.
	Scope(ctx context.Context, r Registration) (made bool, err error)
	// Unregister forgets the machine; that it is unknown is no error.
	Unregister(ctx context.Context, name string) error
	// AfterEnd has the service manager run a program when a unit has ended, however
	// it ended, until Forget is called. It is an error where there is no service manager.
	AfterEnd(ctx context.Context, a AfterEnd) error
	// Forget takes an AfterEnd back, by the name of its unit.
	Forget(unit string)
	// StopRequests receives when the service manager wants the scope to end. It
	// leaves the payload to us then, and kills only when its patience is over.
	StopRequests() <-chan struct{}
	// Stopping tells whether the service manager is stopping the unit that we are in.
	Stopping() bool
	// Rest stops listening for them, until Wake, and returns the descriptor on which the
	// next one shows, -1 when none can come. It is false when that is not possible.
	Rest() (fd int, ok bool)
	// Wake listens again on what Rest has returned, perhaps in another program.
	Wake(fd int)
}

// AfterEnd is a program to be run when a unit has ended.
type AfterEnd struct {
	Unit, Description string // that stands for it
	Of                string // the unit that ends
	Program           string
	Args              []string // from the program's name on
}

// Streams are the caller's standard streams and its words for people.
type Streams struct {
	Stdin, Stdout, Stderr *os.File
	// Inherit are descriptors of socket activation.
	Inherit []*os.File
	Log     io.Writer // where messages go
}

// ExitReboot is the exit status that asks the unit to start the machine again.
const ExitReboot = 133
