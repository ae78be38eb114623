package machine

import (
	"context"
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"machined/image"
	"machined/internal/mapped"
	"machined/internal/netaddr"
	"machined/internal/nsexec"
	"machined/polkit"
	"machined/registry"
	"machined/varlink"
)

const (
	machinePrefix = "io.systemd.Machine."
	imagePrefix   = "io.systemd.MachineImage."

	errNoSuchMachine       = machinePrefix + "NoSuchMachine"
	errMachineExists       = machinePrefix + "MachineExists"
	errNoPrivateNetworking = machinePrefix + "NoPrivateNetworking"
	errNoOSRelease         = machinePrefix + "NoOSReleaseInformation"
	errNoUIDShift          = machinePrefix + "NoUIDShift"
	errNotSupported        = machinePrefix + "NotSupported"
	errNotAvailable        = machinePrefix + "NotAvailable"
	errNoIPC               = machinePrefix + "NoIPC"
	errNoSuchUser          = machinePrefix + "NoSuchUser"
	errNoSuchGroup         = machinePrefix + "NoSuchGroup"
	errUserInHostRange     = machinePrefix + "UserInHostRange"
	errGroupInHostRange    = machinePrefix + "GroupInHostRange"
	errTooManyOperations   = machinePrefix + "TooManyOperations"

	errNoSuchImage            = imagePrefix + "NoSuchImage"
	errImageNotSupported      = imagePrefix + "NotSupported"
	errImageTooManyOperations = imagePrefix + "TooManyOperations"
)

// errorNames turns the errors of the packages below into those of the wire.
var errorNames = []struct {
	is   error
	name string
}{
	{registry.ErrNoSuchMachine, errNoSuchMachine},
	{registry.ErrNoMachineForPID, errNoSuchMachine},
	{registry.ErrMachineExists, errMachineExists},
	{registry.ErrNotSupported, errNotSupported},
	{registry.ErrAccess, varlink.ErrorPermissionDenied},
	{registry.ErrTooMany, errTooManyOperations},
	{netaddr.ErrSharedNamespace, errNoPrivateNetworking},
	{nsexec.ErrSharedMounts, errNotSupported},
	{nsexec.ErrTooManyPTYs, errTooManyOperations},
	{mapped.ErrNotFound, errNoSuchUser},
	{polkit.ErrInteractionRequired, varlink.ErrorInteractiveAuthRequired},
	{polkit.ErrDenied, varlink.ErrorPermissionDenied},
	{image.ErrNoSuchImage, errNoSuchImage},
	{image.ErrNotSupported, errImageNotSupported},
	{image.ErrReadOnly, ""}, // EROFS
	{image.ErrHostTree, ""}, // EADDRNOTAVAIL
	{image.ErrNoSystem, ""}, // ENOPKG
	{image.ErrBusy, ""},     // EBUSY
	{image.ErrExists, ""},   // EEXIST
}

// errnos are the sentinels that travel as io.systemd.System.
var errnos = []struct {
	is    error
	errno unix.Errno
}{
	{image.ErrReadOnly, unix.EROFS},
	{image.ErrHostTree, unix.EADDRNOTAVAIL},
	{image.ErrNoSystem, unix.ENOPKG},
	{image.ErrBusy, unix.EBUSY},
	{image.ErrExists, unix.EEXIST},
	{registry.ErrInvalid, unix.EINVAL},
	{image.ErrInvalid, unix.EINVAL},
	{image.ErrInvalidName, unix.EINVAL},
	{context.Canceled, unix.ECANCELED},
	{context.DeadlineExceeded, unix.ETIMEDOUT},
}

// named gives err its reply.
func named(err error) error {
	var reply *varlink.Error
	if err == nil || errors.As(err, &reply) {
		return err
	}
	for _, row := range errorNames {
		if row.name != "" && errors.Is(err, row.is) {
			return varlink.NewError(row.name)
		}
	}
	for _, row := range errnos {
		if errors.Is(err, row.is) {
			return varlink.SystemError(row.errno)
		}
	}
	var job *registry.JobError
	if errors.As(err, &job) {
		return varlink.SystemError(unix.EPROTO)
	}
	// The caller was authorised, so a permission error is the machine's or the
	// file system's, and says so by its errno.
	var errno unix.Errno
	if errors.As(err, &errno) {
		return varlink.SystemError(errno)
	}
	if errors.Is(err, fs.ErrPermission) {
		return varlink.SystemError(unix.EACCES)
	}
	return err
}

// method gives the errors of a handler their names.
func method(h varlink.Handler) varlink.Method { return varlink.Method{Handler: wrap(h)} }

func wrap(h varlink.Handler) varlink.Handler {
	return func(ctx context.Context, call *varlink.Call) (any, error) {
		result, err := h(ctx, call)
		return result, named(err)
	}
}
