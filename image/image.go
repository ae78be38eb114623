// Package image owns the store of machine images: finding them on the search
// path, describing them, and changing them (clone, rename, remove, read-only
// mark, limits, pool). It serves machined and importd alike. It never speaks to
// a client, takes no authorisation decision, and runs nothing that lies in an
// image.
package image

import "time"

// Type says how an image is stored.
type Type string

// The image types of org.freedesktop.machine1(5).
const (
	TypeDirectory Type = "directory"
	TypeSubvolume Type = "subvolume" // btrfs subvolume
	TypeRaw       Type = "raw"       // regular file with the suffix .raw
	TypeBlock     Type = "block"     // block device node
	TypeMStack    Type = "mstack"    // directory with the suffix .mstack
)

// Class says what an image is for; each class has a search path of its own.
type Class string

// The image classes of org.freedesktop.import1(5).
const (
	ClassMachine  Class = "machine"
	ClassPortable Class = "portable"
	ClassSysext   Class = "sysext"
	ClassConfext  Class = "confext"
)

// Classes lists all classes in the order in which they are shown.
var Classes = []Class{ClassMachine, ClassPortable, ClassSysext, ClassConfext}

// HostName is the name of the pseudo image that stands for the host's own tree.
const HostName = ".host"

// Unknown is the value of a size that is not known or has no limit.
const Unknown = ^uint64(0)

// Image describes one image at the time it was looked at. It is a value and
// does not change after it has been handed out.
type Image struct {
	Name     string
	Path     string
	Class    Class
	Type     Type
	ReadOnly bool
	// Created and Modified are zero when they are not known.
	Created, Modified time.Time
	// Sizes are in bytes, Unknown when not known (Usage) or not set (Limit).
	Usage, Limit                   uint64
	UsageExclusive, LimitExclusive uint64
}

// Hidden says whether listings leave the image out unless asked for all.
func (i Image) Hidden() bool { return len(i.Name) > 0 && i.Name[0] == '.' }

// IsHost says whether the image is the host's own tree.
func (i Image) IsHost() bool { return i.Name == HostName }

// Vendor says whether the image is part of the operating system and may not be
// changed.
func (i Image) Vendor() bool {
	return len(i.Path) > 5 && i.Path[:5] == "/usr/"
}
