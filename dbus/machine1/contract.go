// Package machine1 is the contract of org.freedesktop.machine1 and of our own
// org.machined interfaces: bus names, object paths, error names, wire structs,
// and the client. The server is in machine1/server; nothing here acts on a
// machine.
package machine1

import (
	"strings"

	godbus "github.com/godbus/dbus/v5"
)

// Names of org.freedesktop.machine1(5).
const (
	BusName          = "org.freedesktop.machine1"
	ManagerPath      = godbus.ObjectPath("/org/freedesktop/machine1")
	ManagerInterface = BusName + ".Manager"
	MachineInterface = BusName + ".Machine"
	ImageInterface   = BusName + ".Image"
	MachinePrefix    = "/org/freedesktop/machine1/machine/"
	ImagePrefix      = "/org/freedesktop/machine1/image/"
)

// Our own interfaces, at the same object paths: what stock does not have.
const (
	OwnManagerInterface = "org.machined.Manager1"
	OwnMachineInterface = "org.machined.Machine1"
	OwnImageInterface   = "org.machined.Image1"
)

// PrivateBusAddress is where machined's private bus listens on a host without a system bus.
const PrivateBusAddress = "unix:path=/run/machined/bus"

// Error names of org.freedesktop.machine1(5) and of the services beside it.
const (
	ErrorNoSuchMachine       = BusName + ".NoSuchMachine"
	ErrorNoSuchImage         = BusName + ".NoSuchImage"
	ErrorNoMachineForPID     = BusName + ".NoMachineForPID"
	ErrorMachineExists       = BusName + ".MachineExists"
	ErrorNoPrivateNetworking = BusName + ".NoPrivateNetworking"
	ErrorNoSuchUserMapping   = BusName + ".NoSuchUserMapping"
	ErrorNoSuchGroupMapping  = BusName + ".NoSuchGroupMapping"
	ErrorNoSuchSnapshot      = "org.machined.NoSuchSnapshot"
	ErrorJobFailed           = "org.freedesktop.systemd1.JobFailed"
)

// MachinePath is the object path of the machine called name.
func MachinePath(name string) godbus.ObjectPath {
	return godbus.ObjectPath(MachinePrefix + EscapeLabel(name))
}

// ImagePath is the object path of the image called name.
func ImagePath(name string) godbus.ObjectPath {
	return godbus.ObjectPath(ImagePrefix + EscapeLabel(name))
}

// EscapeLabel turns any string into one element of an object path, as
// sd_bus_path_encode(3) does: letters, and digits but for a leading one, stay;
// every other byte becomes _ and two lower case hex digits; "" becomes "_".
func EscapeLabel(s string) string {
	if s == "" {
		return "_"
	}
	const hex = "0123456789abcdef"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || i > 0 && c >= '0' && c <= '9' {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('_')
		b.WriteByte(hex[c>>4])
		b.WriteByte(hex[c&15])
	}
	return b.String()
}

// UnescapeLabel is the inverse of EscapeLabel; it reports whether s is a label
// that EscapeLabel can have made.
func UnescapeLabel(s string) (string, bool) {
	if s == "_" {
		return "", true
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '_' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		hi, lo := unhex(s[i+1]), unhex(s[i+2])
		if hi < 0 || lo < 0 {
			return "", false
		}
		b.WriteByte(byte(hi<<4 | lo))
		i += 2
	}
	out := b.String()
	return out, EscapeLabel(out) == s
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}
