package stage

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"machined/internal/pack"
)

// Steps of the handshake. The supervisor's end sends the first kind, the
// machine's first process answers with the second.
const (
	StepMapped  = "mapped"  // ids are mapped; the plan follows
	StepCgroup  = "cgroup"  // the process is in its cgroup, links are in place, the machine is registered
	StepExecute = "execute" // go

	StepMounted = "mounted" // own /proc and /sys are there: the pins may go
	StepReady   = "ready"   // everything but the execve is done
	stepError   = "error"
)

type message struct {
	Step  string
	Plan  *Plan
	Error string
	Code  int
}

// Channel is one end of the socket between the supervisor and the stage.
type Channel struct{ f *os.File }

func newChannel() (ours *Channel, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return &Channel{os.NewFile(uintptr(fds[0]), "stage")}, os.NewFile(uintptr(fds[1]), "stage"), nil
}

// Close closes the channel's descriptor.
func (c *Channel) Close() { _ = c.f.Close() }

// Send tells the other end that step is done.
func (c *Channel) Send(step string, plan *Plan) error {
	return c.send(message{Step: step, Plan: plan})
}

func (c *Channel) send(m message) error {
	data := pack.Marshal(m)
	frame := make([]byte, 4, 4+len(data))
	frame[0], frame[1], frame[2], frame[3] = byte(len(data)), byte(len(data)>>8), byte(len(data)>>16), byte(len(data)>>24)
	_, err := c.f.Write(append(frame, data...))
	return err
}

// ErrExecuted is what Wait returns when the other end went away without a word:
// the payload was executed, or the process died.
var ErrExecuted = errors.New("the other end of the stage channel is closed")

// Wait waits for step. A failure of the other end is returned as its error.
func (c *Channel) Wait(step string) error {
	m, err := c.receive()
	if err != nil {
		return err
	}
	if m.Step != step {
		return fmt.Errorf("stage said %q instead of %q", m.Step, step)
	}
	return nil
}

func (c *Channel) receive() (*message, error) {
	var head [4]byte
	if _, err := io.ReadFull(c.f, head[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return nil, ErrExecuted
		}
		return nil, err
	}
	size := int(head[0]) | int(head[1])<<8 | int(head[2])<<16 | int(head[3])<<24
	if size < 0 || size > 64<<20 {
		return nil, fmt.Errorf("stage message of %d bytes", size)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(c.f, data); err != nil {
		return nil, err
	}
	var m message
	if err := pack.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("parse stage message: %w", err)
	}
	if m.Step == stepError {
		return nil, &Error{Message: m.Error, Code: m.Code}
	}
	return &m, nil
}

// Error is a failure inside the machine's first process.
type Error struct {
	Message string
	Code    int // exit status for the whole program, 0: 1
}

func (e *Error) Error() string { return e.Message }
