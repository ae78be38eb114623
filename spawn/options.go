// Package spawn runs one machine: it turns options into a plan, lets the stages
// carry it out, plugs the machine into cgroups, network, journal and the service
// manager, and then supervises it until it ends.
//
// It parses no command line and speaks no D-Bus: both come from its caller. What
// mounts, clones or joins namespaces is package stage.
package spawn

import (
	"golang.org/x/sys/unix"

	"machined/internal/imagepolicy"
	"machined/internal/seccomp"
	"machined/spawn/oci"
	"machined/spawn/settings"
)

// Options is everything that can be asked of the spawner, by the command line and
// by a .nspawn file. It is pure data; Default has what holds when nothing is asked.
type Options struct {
	Quiet bool

	Directory string
	Template  string
	Image     string
	// ImagePolicy is nil where none is given: imagepolicy.Container.
	ImagePolicy *imagepolicy.Policy
	// RootHash, RootHashSig and VerityData are what the root of an image is
	// protected by; the signature is a path, or "base64:" and its bytes.
	RootHash    []byte
	RootHashSig string
	VerityData  string
	// NoAskPassword never asks for a passphrase on the terminal.
	NoAskPassword bool
	MStack        string // directory of a mount stack
	OCIBundle     string
	Bundle        *oci.Config // what is in it; nil without
	Ephemeral     bool
	ReadOnly      bool
	Volatile      string
	PivotNew      string
	PivotOld      string

	StartMode   settings.StartMode
	Args        []string
	Chdir       string
	Env         []string
	User        string
	KillSignal  unix.Signal // 0: not set
	NotifyReady bool
	NoSync      bool

	Machine  string
	Hostname string
	UUID     [16]byte // zero: not set

	Slice      string
	Properties []string
	Register   bool
	// RegisterAuto goes on when the machine can't be registered.
	RegisterAuto bool
	KeepUnit     bool
	Cleanup      bool

	Users        settings.PrivateUsers
	UsersIfAble  bool   // -U: only where the kernel can
	Ownership    string // "": not set
	PrivateNet   bool
	Veth         bool
	VethExtra    []settings.Link
	Interfaces   []settings.Link
	MACVLANs     []settings.Link
	IPVLANs      []settings.Link
	Bridge, Zone string
	NetnsPath    string
	Ports        []settings.Port

	CapAdd, CapDrop, CapAmbient uint64
	NoNewPrivs                  bool
	Nesting                     bool // container engines and machines shall run inside
	SyscallAllow, SyscallDeny   []string
	Families                    seccomp.Families
	Limits                      map[string]settings.Limit
	OOMScore                    *int
	CPUs                        []int
	Personality                 string

	ResolvConf  string
	Timezone    string
	LinkJournal string
	JournalSink JournalSink
	JournalTry  bool

	Mounts         []settings.Mount
	BindUsers      []string
	BindUserShell  settings.BindUserShell
	BindUserGroups []string

	Console     string // "": by what the streams are
	Background  string // SGR background, "" is none
	Credentials map[string][]byte
	credOrder   []string

	// SettingsMode is yes, override, trusted or no; the caller has acted on it.
	SettingsMode string

	Knobs Knobs
}

// Knobs are the settings that come by $SYSTEMD_NSPAWN_* only.
type Knobs struct {
	ShareIPC, SharePID, ShareUTS bool
	CgroupNS                     bool
	APIVFS                       string // no, yes, network
	TmpfsTmp                     bool
	Manager                      string // container=
	HostMAC                      string
	SkipOSRelease                bool
	NoSeccomp                    bool
}

// Default is what holds without any option.
func Default() Options {
	return Options{
		Register: true, Ownership: "", Volatile: "no",
		ResolvConf: "auto", Timezone: "auto", LinkJournal: "auto", JournalTry: true,
		SettingsMode: "yes",
		Limits:       map[string]settings.Limit{}, Credentials: map[string][]byte{},
		Knobs: Knobs{CgroupNS: true, APIVFS: "no", TmpfsTmp: true, Manager: "systemd-nspawn"},
	}
}

// AddCredential adds one; the same name twice is refused by returning false.
func (o *Options) AddCredential(id string, data []byte) bool {
	if _, ok := o.Credentials[id]; ok {
		return false
	}
	o.Credentials[id] = data
	o.credOrder = append(o.credOrder, id)
	return true
}

// forwards tells whether the machine's journal is to go to a sink of ours.
func (o *Options) forwards() bool { return o.JournalSink.Path != "" }

// Userns tells whether the machine gets a user namespace.
func (o *Options) Userns() bool { return o.Users.Mode != settings.UserNone }

// Implied sets what other options bring with them.
func (o *Options) Implied() {
	if o.Bridge != "" || o.Zone != "" {
		o.Veth = true
	}
	if o.Veth || len(o.VethExtra)+len(o.Interfaces)+len(o.MACVLANs)+len(o.IPVLANs) > 0 || o.NetnsPath != "" {
		o.PrivateNet = true
	}
	if o.Ownership == "" {
		o.Ownership = "off"
		if o.Users.Mode == settings.UserPick {
			o.Ownership = "auto"
		}
	}
	if o.Volatile == "" {
		o.Volatile = "no"
	}
}

// Boot and PID2 tell the start mode.
func (o *Options) Boot() bool { return o.StartMode == settings.StartBoot }

// PID2 tells whether a stub init is asked for.
func (o *Options) PID2() bool { return o.StartMode == settings.StartPID2 }
