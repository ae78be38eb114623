package machine1

import godbus "github.com/godbus/dbus/v5"

// ListedMachine is one row of ListMachines, (ssso).
type ListedMachine struct {
	Name, Class, Service string
	Path                 godbus.ObjectPath
}

// ListedImage is one row of ListImages, (ssbttto). Times are in microseconds
// since 1970, 0 where unknown; usage is in bytes, Unknown where it is not known.
type ListedImage struct {
	Name, Type   string
	ReadOnly     bool
	CreatedUSec  uint64
	ModifiedUSec uint64
	UsageBytes   uint64
	Path         godbus.ObjectPath
}

// Unknown is the value of a size that is not known, or of no limit.
const Unknown = ^uint64(0)

// Address is one row of GetMachineAddresses, (iay).
type Address struct {
	Family int32 // AF_INET or AF_INET6
	Bytes  []byte
}

// CleanedImage is one row of CleanPool, (st).
type CleanedImage struct {
	Name       string
	FreedBytes uint64
}

// Property is one (sv).
type Property struct {
	Name  string
	Value godbus.Variant
}

// DetailedMachine is one row of ListMachinesDetailed, (sssa(iay)a{ss}).
// OSRelease is empty where it is not known or the caller may not see it.
type DetailedMachine struct {
	Name, Class, Service string
	Addresses            []Address
	OSRelease            map[string]string
}

// UnitChange is one row of EnableMachines, (sss): "symlink" or "unlink", the
// link, and what it points to.
type UnitChange struct {
	Type, File, Source string
}

// LiveBind is one row of ListBinds, (ssb).
type LiveBind struct {
	Source, Destination string
	ReadOnly            bool
}

// ListedSnapshot is one row of ListSnapshots, (sstst). UsageBytes is ^uint64(0)
// where it is not known.
type ListedSnapshot struct {
	Image, Name string
	CreatedUSec uint64
	Type        string
	UsageBytes  uint64
}
