// Package registry owns the table of running machines: how they are created,
// looked up, watched and removed, and the state files that describe them under
// /run/systemd/machines. It acts on the kernel and on the service manager
// through the interfaces it declares; it never speaks D-Bus to a client, knows
// nothing of images, and takes no authorisation decision.
package registry

import "time"

// Class says what kind of machine a machine is.
type Class string

// The classes of org.freedesktop.machine1(5).
const (
	ClassContainer Class = "container"
	ClassVM        Class = "vm"
	ClassHost      Class = "host"
)

// State is the life-cycle state of a machine.
type State string

// The states of org.freedesktop.machine1(5).
const (
	StateOpening State = "opening"
	StateRunning State = "running"
	StateClosing State = "closing"
)

// HostName is the name of the pseudo machine that stands for the host itself.
const HostName = ".host"

// VSockCIDAny is the context id of a machine whose context id is not known (vsock(7)).
const VSockCIDAny = ^uint32(0)

// Process names one process without the danger of PID reuse.
type Process struct {
	PID int // 0: no process
	// FDID is the inode number of the process's pidfd on pidfs, 0 where the
	// kernel has no pidfs. It is unique for one boot.
	FDID uint64
}

// Machine is a snapshot of one machine. It is a value: it never changes after
// it has been handed out, and the machine may be gone by the time it is read.
type Machine struct {
	Name          string
	ID            [16]byte // zero: unknown
	Service       string
	Class         Class
	RootDirectory string
	Unit          string // scope or service that holds the leader
	Subgroup      string // cgroup below Unit that holds the machine, empty: all of Unit
	// Shared says that Unit, or its part, is not the machine's: nothing may be done
	// to it for the machine's sake. It is no part of the state file.
	Shared        bool
	Leader        Process
	Supervisor    Process
	Realtime      time.Time     // when it was registered
	Monotonic     time.Duration // the same on CLOCK_MONOTONIC
	NetIfs        []int         // host side interface indices
	UID           uint32        // user who owns the machine
	VSockCID      uint32
	SSHAddress    string
	SSHPrivateKey string // path
	// ControlAddress is the varlink address of the machine's own control socket (v261).
	ControlAddress string
	State          State
}
