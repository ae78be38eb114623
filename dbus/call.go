package dbus

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// Call is one method call. It is used by the goroutine that answers it only.
type Call struct {
	Sender    string // unique name of the caller
	Path      godbus.ObjectPath
	Interface string
	Member    string
	Args      []any
	// Interactive is the caller's permission to ask a person for authorisation.
	Interactive bool

	tree    *Tree
	serial  uint32
	noReply bool
	bytes   int   // of the arguments, about
	fds     []int // all that came with it; closed when the call is over
}

// Store decodes the arguments. Their signature is known to be the method's.
func (c *Call) Store(dst ...any) error {
	if err := godbus.Store(c.Args, dst...); err != nil {
		return Errorf(ErrorInvalidArgs, "decode arguments of %s: %w", c.Member, err)
	}
	return nil
}

// String returns argument i, which the method's signature says is a string or path.
func (c *Call) String(i int) string {
	switch v := c.Args[i].(type) {
	case string:
		return v
	case godbus.ObjectPath:
		return string(v)
	}
	return ""
}

// Uint32 returns argument i, which the method's signature says is u.
func (c *Call) Uint32(i int) uint32 { v, _ := c.Args[i].(uint32); return v }

// Uint64 returns argument i, which the method's signature says is t.
func (c *Call) Uint64(i int) uint64 { v, _ := c.Args[i].(uint64); return v }

// Bool returns argument i, which the method's signature says is b.
func (c *Call) Bool(i int) bool { v, _ := c.Args[i].(bool); return v }

// File returns a duplicate of the descriptor in argument i; the caller closes it.
func (c *Call) File(i int) (*os.File, error) {
	fd, ok := c.Args[i].(godbus.UnixFD)
	if !ok || fd < 0 {
		return nil, Errorf(ErrorInvalidArgs, "argument %d of %s is no file descriptor", i+1, c.Member)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate argument %d of %s: %w", i+1, c.Member, err)
	}
	return os.NewFile(uintptr(dup), fmt.Sprintf("argument %d of %s", i+1, c.Member)), nil
}

// Credentials are what the bus knows of a peer. They never change while it is
// connected.
type Credentials struct {
	UID uint32
	PID int

	mu      sync.Mutex
	process *sys.Process
	gone    bool
}

// Process returns a pinned handle on the peer, which the caller closes. It is
// unix.ESRCH when the peer's process is gone.
func (c *Credentials) Process() (*sys.Process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == nil || c.gone {
		return nil, fmt.Errorf("pin process %d: %w", c.PID, unix.ESRCH)
	}
	return c.process.Dup()
}

func (c *Credentials) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	if c.process != nil {
		c.process.Close()
	}
}

// Credentials asks the bus who the caller is. The caller's process is pinned:
// by the bus where it has ProcessFD, else by PID while the caller is known to
// be connected.
func (c *Call) Credentials(ctx context.Context) (*Credentials, error) {
	return c.tree.credentials(ctx, c.Sender)
}

func (t *Tree) credentials(ctx context.Context, sender string) (*Credentials, error) {
	t.mu.Lock()
	s := t.senders[sender]
	if s != nil && s.creds != nil {
		defer t.mu.Unlock()
		return s.creds, nil
	}
	t.mu.Unlock()
	if !strings.HasPrefix(sender, ":") {
		return nil, Errorf(ErrorAccessDenied, "caller %q has no unique name", sender)
	}
	var fields map[string]godbus.Variant
	err := t.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetConnectionCredentials", 0, sender).Store(&fields)
	if err != nil {
		return nil, Errorf(ErrorAccessDenied, "ask bus for credentials of %s: %w", sender, err)
	}
	uid, ok := fields["UnixUserID"].Value().(uint32)
	if !ok {
		return nil, Errorf(ErrorAccessDenied, "bus does not know the user of %s", sender)
	}
	pid, _ := fields["ProcessID"].Value().(uint32)
	creds := &Credentials{UID: uid, PID: int(pid)}
	if fd, ok := fields["ProcessFD"].Value().(godbus.UnixFD); ok && fd >= 0 {
		creds.process, _ = sys.FromPIDFD(int(fd))
		_ = unix.Close(int(fd))
	}
	if creds.process == nil && pid > 0 {
		creds.process, _ = sys.OpenProcess(int(pid))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s = t.senders[sender]
	if s == nil { // left meanwhile
		creds.close()
		return creds, nil
	}
	if s.creds != nil {
		creds.close()
		return s.creds, nil
	}
	s.creds = creds
	return creds, nil
}
