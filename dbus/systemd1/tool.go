package systemd1

import (
	"context"
	"os"
	"path/filepath"

	godbus "github.com/godbus/dbus/v5"
)

// command is one element of ExecStart=, a(sasb).
type command struct {
	Path          string
	Argv          []string
	IgnoreFailure bool
}

// RunTool runs a program of the host as a transient service and waits for its end.
// It has dir as standard input, and may write next to that and in temporary directories of its own, and mounts made
// by it are seen by nobody else. When ctx ends the service is stopped, with all
// processes in it.
func (b *Backend) RunTool(ctx context.Context, name, description string, argv []string, dir, output *os.File) error {
	fd := godbus.UnixFD(output.Fd())
	props := []property{
		{"Description", godbus.MakeVariant(description)},
		{"Type", godbus.MakeVariant("oneshot")},
		{"ExecStart", godbus.MakeVariant([]command{{Path: argv[0], Argv: argv}})},
		{"Environment", godbus.MakeVariant([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"})},
		{"StandardInputFileDescriptor", godbus.MakeVariant(godbus.UnixFD(dir.Fd()))},
		{"StandardOutputFileDescriptor", godbus.MakeVariant(fd)},
		{"StandardErrorFileDescriptor", godbus.MakeVariant(fd)},
		{"CollectMode", godbus.MakeVariant("inactive-or-failed")},
		{"KillMode", godbus.MakeVariant("control-group")},
		{"TimeoutStopUSec", godbus.MakeVariant(uint64(10_000_000))},
		{"ProtectSystem", godbus.MakeVariant("full")},
		{"ProtectHome", godbus.MakeVariant("read-only")},
		{"PrivateTmp", godbus.MakeVariant(true)},
		{"ReadWritePaths", godbus.MakeVariant([]string{filepath.Dir(dir.Name())})},
	}
	job, err := b.startJob(ctx, name, "StartTransientUnit", name, "fail", props, []aux{})
	if err != nil {
		return wrap("start unit", name, err)
	}
	select {
	case err := <-job.Done:
		return err
	case <-ctx.Done():
	}
	// The caller removes what the service writes to: it must have ended by then.
	if stop, err := b.startJob(context.WithoutCancel(ctx), name, "StopUnit", name, "replace"); err == nil {
		<-stop.Done
	}
	return ctx.Err()
}
