// Package settings reads .nspawn files (systemd.nspawn(5)) and the values that
// they share with the command line.
//
// It is pure: it looks at no machine, resolves no path inside one and knows no
// precedence between file and command line. A line that it cannot take becomes a
// Warning and is passed over, as in stock.
package settings

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"machined/internal/seccomp"
)

// File is what a .nspawn file says. Pointers are nil, strings and lists empty,
// where it says nothing.
type File struct {
	// [Exec]

	StartMode         StartMode // of Boot= and ProcessTwo=
	Parameters        []string  // arguments, or command and arguments
	Ephemeral         *bool
	Environment       []string // NAME=VALUE
	User              string
	WorkingDirectory  string // absolute
	PivotRootNew      string // absolute; Old may be empty
	PivotRootOld      string
	Capability        uint64 // added to the default
	DropCapability    uint64 // wins over added ones
	AmbientCapability uint64
	AmbientAll        bool        // asked for all, which nothing grants
	KillSignal        unix.Signal // 0: unset
	Personality       string      // architecture name of systemd, such as x86
	MachineID         *[16]byte
	PrivateUsers      *PrivateUsers
	NotifyReady       *bool
	SystemCallAllow   []string // names and @groups
	SystemCallDeny    []string
	AddressFamilies   *seccomp.Families
	Limits            map[string]Limit // by name: NOFILE, NPROC...
	OOMScoreAdjust    *int
	CPUAffinity       []int // CPU numbers, sorted, each once; nil: unset
	Hostname          string
	NoNewPrivileges   *bool
	Nesting           *bool
	ResolvConf        string // one of ResolvConfModes
	Timezone          string // one of TimezoneModes
	LinkJournal       string // no, host, guest, auto
	LinkJournalTry    bool   // failure to link is no error
	SuppressSync      *bool

	// [Files]

	ReadOnly      *bool
	Volatile      string // one of VolatileModes
	Mounts        []Mount
	Ownership     string // one of OwnershipModes
	BindUsers     []string
	BindUserShell *BindUserShell

	// [Network]

	Private              *bool
	VirtualEthernet      *bool
	VirtualEthernetExtra []Link
	Interfaces           []Link
	MACVLANs             []Link
	IPVLANs              []Link
	Bridge               string
	Zone                 string // without vz-
	Ports                []Port
	NamespacePath        string // absolute
}

// StartMode is what runs as the machine's first process.
type StartMode int

// The modes.
const (
	StartUnset   StartMode = iota
	StartCommand           // the command is PID 1
	StartPID2              // the command is PID 2 under a stub
	StartBoot              // an init
)

// PrivateUsers says which user namespace the machine gets.
type PrivateUsers struct {
	Mode  UserMode
	Base  uint32 // UserFixed: first host UID
	Count uint32 // UserFixed: how many
}

// UserMode is a way to find the UID range.
type UserMode int

// The modes.
const (
	UserNone     UserMode = iota // no user namespace
	UserRoot                     // yes: the range that the tree's owner is in
	UserPick                     // a free range
	UserIdentity                 // 0 to 65535, as on the host
	UserFixed                    // BASE[:COUNT]
	UserManaged                  // from systemd-nsresourced
)

// Limit is a resource limit (setrlimit(2)); unix.RLIM_INFINITY is none. RTTIME is
// in microseconds, CPU in seconds, sizes are bytes, NICE is 20 less the nice
// level.
type Limit struct{ Soft, Hard uint64 }

// MountKind is a kind of extra mount.
type MountKind int

// The kinds.
const (
	MountBind MountKind = iota
	MountTmpfs
	MountInaccessible
	MountOverlay
)

// Mount is one extra mount, in the file's order.
type Mount struct {
	Kind MountKind
	// Sources: one of a bind mount; of an overlay the lower layers, lowest
	// first, then the upper one (read-only: all lower). "" is a fresh temporary
	// directory on the host. A leading + has been moved to InImage.
	Sources []Source
	// Destination is absolute, inside the machine.
	Destination string
	ReadOnly    bool
	// Options of a tmpfs, for mount(2).
	Options string
	// Bind says how a bind mount is made.
	Bind BindOptions
}

// Source is a directory or file of the host, or of the machine's own image.
type Source struct {
	Path    string
	InImage bool
}

// BindOptions are those of a bind mount.
type BindOptions struct {
	NonRecursive bool // norbind
	IDMap        IDMap
	Bad          string // a word that is no option; the machine can't start
}

// IDMap is how the owners of a bind mount's files appear in a machine with
// private users.
type IDMap int

// The maps.
const (
	IDMapNone  IDMap = iota // noidmap: as they are
	IDMapFull               // idmap: like the machine's own tree
	IDMapRoot               // rootidmap: the machine's root is the host's root
	IDMapOwner              // owneridmap: the machine's root is the source's owner
)

// Link is a network link of the host and what it is called in the machine.
type Link struct{ Host, Container string }

// Port is a port of the host that leads to one of the machine.
type Port struct {
	Protocol        string // tcp or udp
	Host, Container uint16
}

// BindUserShell is the shell of users bound into the machine: the host's, or a
// path, or none of both for the default.
type BindUserShell struct {
	Copy bool
	Path string
}

// Warning is a line that was not taken.
type Warning struct {
	Line int // from 1; 0: not about one line
	Text string
}

// In returns the warning as stock prints it about the file called name.
func (w Warning) In(name string) string {
	if w.Line == 0 {
		return strings.ReplaceAll(w.Text, "FILE", name)
	}
	return fmt.Sprintf("%s:%d: %s", name, w.Line, w.Text)
}

// PrivateNetwork tells whether the file asks for a network of the machine's own,
// by name or by an option that needs it.
func (f *File) PrivateNetwork() bool {
	if f.Private != nil {
		return *f.Private
	}
	return f.Veth() || len(f.Interfaces) > 0 || len(f.MACVLANs) > 0 || len(f.IPVLANs) > 0 || len(f.VirtualEthernetExtra) > 0 || f.NamespacePath != ""
}

// Veth tells whether the file asks for the link between host and machine.
func (f *File) Veth() bool {
	if f.VirtualEthernet != nil {
		return *f.VirtualEthernet
	}
	return f.Bridge != "" || f.Zone != ""
}

// DropUntrusted takes away what only an administrator's file may ask for: all
// that gives the machine more of the host. It returns a warning for each setting
// taken away.
func (f *File) DropUntrusted() []Warning {
	var out []Warning
	drop := func(set bool, name string, clear func()) {
		if set {
			clear()
			out = append(out, Warning{Text: "Ignoring " + name + ", file FILE is not trusted."})
		}
	}
	drop(f.Ephemeral != nil, "ephemeral setting", func() { f.Ephemeral = nil })
	drop(f.Capability != 0, "Capability= setting", func() { f.Capability = 0 })
	drop(f.AmbientCapability != 0 || f.AmbientAll, "AmbientCapability= setting", func() { f.AmbientCapability, f.AmbientAll = 0, false })
	drop(f.Nesting != nil, "Nesting= setting", func() { f.Nesting = nil })
	drop(f.MachineID != nil, "MachineID= setting", func() { f.MachineID = nil })
	drop(f.PrivateUsers != nil || f.Ownership != "", "PrivateUsers= and PrivateUsersChown= settings", func() { f.PrivateUsers, f.Ownership = nil, "" })
	drop(len(f.SystemCallAllow) > 0, "SystemCallFilter= settings", func() { f.SystemCallAllow, f.SystemCallDeny = nil, nil })
	for _, name := range Limits() {
		_, set := f.Limits[name]
		drop(set, "Limit"+name+"= setting", func() { delete(f.Limits, name) })
	}
	if len(f.Limits) == 0 {
		f.Limits = nil
	}
	drop(f.OOMScoreAdjust != nil, "OOMScoreAdjust= setting", func() { f.OOMScoreAdjust = nil })
	drop(f.CPUAffinity != nil, "CPUAffinity= setting", func() { f.CPUAffinity = nil })
	drop(f.LinkJournal != "", "journal link setting", func() { f.LinkJournal, f.LinkJournalTry = "", false })
	drop(len(f.Mounts) > 0, "TemporaryFileSystem=, Bind= and BindReadOnly= settings", func() { f.Mounts = nil })
	drop(len(f.BindUsers) > 0, "BindUser= setting", func() { f.BindUsers = nil })
	drop(f.BindUserShell != nil, "BindUserShell= setting", func() { f.BindUserShell = nil })
	network := f.Private != nil || f.VirtualEthernet != nil || f.PrivateNetwork()
	drop(network, "network settings", func() {
		f.Private, f.VirtualEthernet = nil, nil
		f.VirtualEthernetExtra, f.Interfaces, f.MACVLANs, f.IPVLANs = nil, nil, nil, nil
		f.Bridge, f.Zone, f.NamespacePath = "", "", ""
	})
	drop(len(f.Ports) > 0, "Port= setting", func() { f.Ports = nil })
	return out
}

// Modes of settings that are one word; each parser accepts these.
var (
	ResolvConfModes = []string{
		"off", "copy-host", "copy-static", "copy-uplink", "copy-stub", "replace-host", "replace-static",
		"replace-uplink", "replace-stub", "bind-host", "bind-static", "bind-uplink", "bind-stub", "delete", "auto",
	}
	TimezoneModes  = []string{"off", "copy", "bind", "symlink", "delete", "auto"}
	VolatileModes  = []string{"no", "yes", "state", "overlay"}
	OwnershipModes = []string{"off", "chown", "map", "foreign", "auto"}
)
