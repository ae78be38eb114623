// Package stage does to the kernel what a plan says: it builds the mount tree of
// a machine on a thread of the supervisor, clones the machine's first process
// into its namespaces, sets that process up from the inside and executes the
// payload.
//
// It decides nothing: every choice is in the Plan. It never talks to a bus and
// never reads configuration. Everything that is a property of a thread happens
// on one locked thread, the one that executes or clones.
package stage

// Plan is everything that the stages need to know. It crosses an exec (package pack).
type Plan struct {
	Machine  string
	Hostname string
	UUID     string // dashed

	Root   Root
	Userns *Userns // nil: none

	PrivateNet  bool
	NewNet      bool   // a network namespace of its own, made with the process
	NetnsPath   string // join this one instead
	ShareIPC    bool
	SharePID    bool
	ShareUTS    bool
	CgroupNS    bool
	APIVFS      string // "no", "yes", "network": how much of /proc and /sys is writable; "network" is /proc/sys/net
	TmpfsTmp    bool
	Boot        bool
	PID2        bool
	StopSignal  int // that asks the payload to end, 0 for none in particular
	Console     Console
	Mounts      []Mount
	MachineID   bool // write nothing; kept for container_uuid
	ResolvConf  FileAction
	Timezone    FileAction
	Journal     *Journal
	JournalDir  bool // make /var/log/journal, in which journald keeps what lasts
	Credentials []Credential
	CredsOpen   bool // 0555/0444: the payload is not root and can't raise itself
	Devices     []string
	Propagate   string // host directory behind /run/host/incoming; "" none, as for a machine that machined does not know
	OSRelease   string // host's file
	Manager     string // value of container=
	BindUsers   []BindUser

	User        string
	ExtraGroups []uint32
	UIDSet      *IDs // OCI: numeric ids, no lookup
	Argv        []string
	Env         []string
	Chdir       string
	Term        []string // TERM=..., COLORTERM=... of the terminal
	NoNewPrivs  bool
	Nesting     bool // container engines and machines shall run inside
	CapBounding uint64
	CapAmbient  uint64
	OCICaps     *CapSets
	Seccomp     [][]byte // raw struct sock_filter arrays, loaded in order
	Rlimits     []Rlimit
	EarlyLimits bool // the filters may not let them be set later
	OOMScore    *int
	Affinity    []int
	Personality *uint64
	Sysctls     []KeyValue
	ExitSignal  int // of the kill signal, told to the stub
	MaskedPaths []string
	ROPaths     []string
	ListenFDs   int
	Nodes       []Node
	Domainname  string
	Propagation uint64 // MS_SHARED... of the root, 0: shared
	Umask       *uint32
	NoHome      bool // no $HOME for a user by number
	// NoLogin is set when an empty Argv must not start a shell.
	NoLogin bool
}

// KeyValue is one setting.
type KeyValue struct{ Key, Value string }

// Node is a device node or FIFO to make; Mode has its type.
type Node struct {
	Path     string
	Mode     uint32
	Device   uint64
	UID, GID uint32 // inside
}

// IDs are numeric ids inside the machine.
type IDs struct{ UID, GID uint32 }

// CapSets are the five sets of an OCI bundle.
type CapSets struct{ Bounding, Effective, Inheritable, Permitted, Ambient uint64 }

// Root says where the tree comes from.
type Root struct {
	// DeviceReadOnly mounts the devices read-only, whatever lies over them.
	DeviceReadOnly bool
	Path           string // directory on the host
	Device         string // or block device, mounted by FSType
	FSType         string
	Grow           bool        // make the file system as large as the device
	Memory         bool        // or an empty one in memory
	Stack          *Stack      // or layers
	Extra          []Partition // further partitions of a disk image
	// Need are files of which a disk image has to have one; Shown is its name.
	Need     []string
	Shown    string
	ReadOnly bool
	// ReadOnlyLate lets mount points be made in a root that is to be read-only.
	ReadOnlyLate bool
	Volatile     string // "no", "yes", "state", "overlay"
	// Overlay is an empty directory of the host that takes all changes to the
	// image, which stays as it is; "" for none.
	Overlay   string
	PivotNew  string
	PivotOld  string
	Ownership string // "off", "chown", "map", "auto"
	Custom    *Mount // a mount that takes the place of "/"
}

// Partition is mounted inside the root.
type Partition struct {
	Device, FSType, Dest string
	Designator           string // of the Discoverable Partitions Specification
	ReadOnly             bool
	Grow                 bool // make the file system as large as the device
}

// Stack is a root of layers, from the bottom up (systemd.mstack(7)).
type Stack struct {
	Layers []Layer
	// Writable is a directory that takes changes in its subdirectory data; ""
	// for none: the root can't be written to.
	Writable string
	Mounts   []StackMount
}

// Layer is a directory of the host, or a block device.
type Layer struct {
	Path           string
	Device, FSType string
	ReadOnly       bool // the device
}

// StackMount is mounted on a stack: a layer, or an empty file system in memory.
type StackMount struct {
	Layer
	Dest     string
	Memory   bool
	ReadOnly bool
}

// Userns is the machine's user namespace map: 0 Base Count, but for the users of
// the host that are seen inside under their own ID.
type Userns struct {
	Base, Count uint32
	Users       []UserMapping
}

// UserMapping shows a user and group of the host as one ID inside.
type UserMapping struct{ Inside, HostUID, HostGID uint32 }

// Mapping is one line of uid_map and gid_map.
type Mapping struct{ Inside, Outside, Count uint32 }

// Console says what the payload's standard streams are.
type Console struct {
	PTY bool
	// Colours and size of the host terminal, 0 unknown.
	Rows, Cols uint16
	// Attach makes the PTY the payload's streams; otherwise it only is /dev/console.
	Attach bool
}

// Mount is one custom mount, already validated.
type Mount struct {
	Kind      string // "bind", "tmpfs", "overlay", "inaccessible", "arbitrary"
	Sources   []Source
	Dest      string
	ReadOnly  bool
	Recursive bool
	IDMap     string // "", "idmap", "rootidmap", "owneridmap"
	Options   string
	FSType    string // arbitrary
	WorkDir   string // overlay
	Graceful  bool
	// Propagation is MS_SHARED..., 0 for what comes of itself.
	Propagation uint64
}

// Source is a path of a mount, on the host or inside the image.
type Source struct {
	Path   string
	Inside bool
}

// FileAction is what happens to one file of /etc that follows the host's.
type FileAction struct {
	Mode   string // "off", "copy", "replace", "bind", "delete", "symlink"
	Source string // file on the host; for symlink: the link's content
	Zone   string // timezone name for symlink
	// Fallback is used when a symlink can't work in this image.
	Fallback string
	ReadOnly bool
}

// Journal links the machine's journal with the host's.
type Journal struct {
	Mode string // "guest": the host side link is the supervisor's; "host": bind
	Host string // /var/log/journal/ID of the host
	ID   string
	Try  bool
}

// Credential is one file in /run/host/credentials.
type Credential struct {
	ID   string
	Data []byte
}

// BindUser is a user of the host who is to exist inside.
type BindUser struct {
	Name, Home     string // home directory on the host
	Shell          string // "": the machine's default
	UID, GID       uint32 // on the host
	Passwords      []string
	GroupPasswords []string
	SSHKeys        []string
	Groups         []string // of the machine, besides its own
}

// Rlimit is one resource limit. It becomes as high as we may set it.
type Rlimit struct {
	Resource   int
	Soft, Hard uint64
}
