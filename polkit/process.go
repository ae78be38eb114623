package polkit

import (
	"context"
	"fmt"
	"strconv"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"machined/internal/sys"
)

// CheckProcess is Check for a caller that is not on the bus: the pinned process
// p of the user uid, who the kernel says it was when it connected. The pidfd
// goes along; polkit before version 124 reads the PID and start time instead.
// The caller keeps p.
func (a *Authority) CheckProcess(ctx context.Context, p *sys.Process, uid uint32, action string, details map[string]string, interactive bool) error {
	name := "process " + strconv.Itoa(p.PID())
	fd := p.FD()
	if fd < 0 || !p.Alive() {
		return fmt.Errorf("check %s for %s: %w: %w", action, name, ErrDenied, unix.ESRCH)
	}
	who := subject{Kind: "unix-process", Details: map[string]godbus.Variant{
		"pid":        godbus.MakeVariant(uint32(p.PID())),
		"start-time": godbus.MakeVariant(p.StartTime()),
		"uid":        godbus.MakeVariant(int32(uid)),
		"pidfd":      godbus.MakeVariant(godbus.UnixFD(fd)),
	}}
	if err := a.check(ctx, who, name, action, details, interactive); err != nil {
		return err
	}
	// An answer about a process that has ended is about nobody.
	if !p.Alive() {
		return fmt.Errorf("check %s for %s: %w: %w", action, name, ErrDenied, unix.ESRCH)
	}
	return nil
}
