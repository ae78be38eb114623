package machine

import "machined/varlink"

func (s *Services) machineInterface() varlink.Interface {
	return varlink.Interface{
		Name:        "io.systemd.Machine",
		Description: machineIDL,
		Methods: map[string]varlink.Method{
			"Register":          method(s.register),
			"Unregister":        method(s.unregister),
			"Terminate":         method(s.terminate),
			"Kill":              method(s.kill),
			"List":              method(s.list),
			"Open":              method(s.open),
			"MapFrom":           method(s.mapFrom),
			"MapTo":             method(s.mapTo),
			"BindMount":         method(s.bindMount),
			"CopyFrom":          method(s.copyFrom),
			"CopyTo":            method(s.copyTo),
			"OpenRootDirectory": method(s.openRootDirectory),
		},
	}
}

const machineIDL = `# The machines of this host: containers and virtual machines.
interface io.systemd.Machine

# Whether List looks inside the machines; graceful leaves out what it can't get.
type AcquireMetadata(
	no,
	yes,
	graceful
)

# What Open opens.
type MachineOpenMode(
	tty,
	login,
	shell
)

# A process; pidfdId and bootId tell it from later ones with the same number.
type ProcessId(
	pid: int,
	pidfdId: ?int,
	bootId: ?string
)

# A point in time, in microseconds.
type Timestamp(
	realtime: ?int,
	monotonic: ?int
)

# An address of a machine.
type Address(
	ifindex: ?int,
	family: int,
	address: []int
)

# Registers a machine. With allocateUnit its leader gets a scope of its own.
method Register(
	name: string,
	class: string,
	id: ?string,
	service: ?string,
	leader: ?int,
	leaderProcessId: ?ProcessId,
	supervisor: ?int,
	supervisorProcessId: ?ProcessId,
	rootDirectory: ?string,
	ifIndices: ?[]int,
	vSockCid: ?int,
	sshAddress: ?string,
	sshPrivateKeyPath: ?string,
	controlAddress: ?string,
	allocateUnit: ?bool,
	allowInteractiveAuthentication: ?bool
) -> ()

# Forgets a machine; its processes stay.
method Unregister(
	name: ?string,
	pid: ?ProcessId,
	allowInteractiveAuthentication: ?bool
) -> ()

# Ends a machine and its processes.
method Terminate(
	name: ?string,
	pid: ?ProcessId,
	allowInteractiveAuthentication: ?bool
) -> ()

# Sends a signal to the leader, the supervisor, or all processes of a machine.
method Kill(
	name: ?string,
	pid: ?ProcessId,
	allowInteractiveAuthentication: ?bool,
	whom: ?string,
	signal: int
) -> ()

# Describes one machine, or, with 'more', all of them.
method List(
	name: ?string,
	pid: ?ProcessId,
	allowInteractiveAuthentication: ?bool,
	acquireMetadata: ?AcquireMetadata
) -> (
	name: string,
	id: ?string,
	service: ?string,
	class: string,
	leader: ?ProcessId,
	supervisor: ?ProcessId,
	rootDirectory: ?string,
	unit: ?string,
	subgroup: ?string,
	timestamp: ?Timestamp,
	vSockCid: ?int,
	sshAddress: ?string,
	sshPrivateKeyPath: ?string,
	controlAddress: ?string,
	addresses: ?[]Address,
	OSRelease: ?[]string,
	UIDShift: ?int,
	UID: ?int
)

# Opens a terminal in a machine and passes its descriptor.
method Open(
	name: ?string,
	pid: ?ProcessId,
	allowInteractiveAuthentication: ?bool,
	mode: MachineOpenMode,
	user: ?string,
	path: ?string,
	args: ?[]string,
	environment: ?[]string
) -> (
	ptyFileDescriptor: int,
	ptyPath: string
)

# Translates ids of a machine to the host's.
method MapFrom(
	name: ?string,
	pid: ?ProcessId,
	uid: ?int,
	gid: ?int
) -> (
	uid: ?int,
	gid: ?int
)

# Translates ids of the host to those of the machine that maps them.
method MapTo(
	uid: ?int,
	gid: ?int
) -> (
	uid: ?int,
	gid: ?int,
	machineName: ?string
)

# Mounts a file or directory of the host into a machine.
method BindMount(
	name: ?string,
	pid: ?ProcessId,
	allowInteractiveAuthentication: ?bool,
	source: string,
	destination: ?string,
	readOnly: ?bool,
	mkdir: ?bool
) -> ()

# Copies a file or directory from a machine to the host.
method CopyFrom(
	name: ?string,
	pid: ?ProcessId,
	allowInteractiveAuthentication: ?bool,
	source: string,
	destination: ?string,
	replace: ?bool
) -> ()

# Copies a file or directory from the host to a machine.
method CopyTo(
	name: ?string,
	pid: ?ProcessId,
	allowInteractiveAuthentication: ?bool,
	source: string,
	destination: ?string,
	replace: ?bool
) -> ()

# Opens the root directory of a machine and passes its descriptor.
method OpenRootDirectory(
	name: ?string,
	pid: ?ProcessId,
	allowInteractiveAuthentication: ?bool
) -> (
	fileDescriptor: int
)

# No machine matches.
error NoSuchMachine()

# The name is taken.
error MachineExists()

# The machine uses the host's network.
error NoPrivateNetworking()

# The machine has no os-release file.
error NoOSReleaseInformation()

# The machine's user namespace is no simple shift.
error NoUIDShift()

# The information is not available for this machine.
error NotAvailable()

# The operation is not supported on this machine.
error NotSupported()

# The machine has no bus.
error NoIPC()

# No such user.
error NoSuchUser()

# No such group.
error NoSuchGroup()

# The user is one of the host's own.
error UserInHostRange()

# The group is one of the host's own.
error GroupInHostRange()

# Too many operations are under way.
error TooManyOperations()
`
