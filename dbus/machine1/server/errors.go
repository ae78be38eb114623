package server

import (
	"context"
	"errors"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/internal/netaddr"
	"machined/internal/nsexec"
	"machined/polkit"
	"machined/registry"
)

// errorNames turns the sentinels of the packages below into names on the bus.
var errorNames = []struct {
	is   error
	name string
}{
	{registry.ErrNoSuchMachine, machine1.ErrorNoSuchMachine},
	{registry.ErrMachineExists, machine1.ErrorMachineExists},
	{registry.ErrNoMachineForPID, machine1.ErrorNoMachineForPID},
	{registry.ErrNotSupported, dbus.ErrorNotSupported},
	{registry.ErrInvalid, dbus.ErrorInvalidArgs},
	{registry.ErrAccess, dbus.ErrorAccessDenied},
	{registry.ErrTooMany, dbus.ErrorLimitsExceeded},
	{polkit.ErrInteractionRequired, dbus.ErrorInteractiveAuthorizationRequired},
	{polkit.ErrDenied, dbus.ErrorAccessDenied},
	{netaddr.ErrSharedNamespace, machine1.ErrorNoPrivateNetworking},
	{nsexec.ErrSharedMounts, dbus.ErrorNotSupported},
	{nsexec.ErrTooManyPTYs, dbus.ErrorLimitsExceeded},
	{nsexec.ErrNoSuchBind, dbus.ErrorFileNotFound},
}

// named gives err its name on the bus.
func named(err error) error {
	if err == nil {
		return nil
	}
	var own *dbus.Error
	if errors.As(err, &own) {
		return err
	}
	for _, row := range errorNames {
		if errors.Is(err, row.is) {
			return dbus.Errorf(row.name, "%w", err)
		}
	}
	if own := imageError(err); own != nil {
		return own
	}
	var job *registry.JobError
	if errors.As(err, &job) {
		return dbus.Errorf(machine1.ErrorJobFailed, "%w", err)
	}
	return err
}

// handler gives the errors of a method their names.
func handler(f dbus.Handler) dbus.Handler {
	return func(ctx context.Context, c *dbus.Call, object any) ([]any, error) {
		values, err := f(ctx, c, object)
		return values, named(err)
	}
}

func invalid(format string, args ...any) error {
	return dbus.Errorf(dbus.ErrorInvalidArgs, format, args...)
}

func notSupported(format string, args ...any) error {
	return dbus.Errorf(dbus.ErrorNotSupported, format, args...)
}
