// Package import1 is the contract of org.freedesktop.import1: bus names, object
// paths, error names, flags and wire structs. The server is in import1/server;
// nothing here transfers anything.
package import1

import (
	"math"
	"strconv"

	godbus "github.com/godbus/dbus/v5"
)

// Names of org.freedesktop.import1(5).
const (
	BusName           = "org.freedesktop.import1"
	ManagerPath       = godbus.ObjectPath("/org/freedesktop/import1")
	ManagerInterface  = BusName + ".Manager"
	TransferInterface = BusName + ".Transfer"
	TransferParent    = ManagerPath + "/transfer"
	// What stock does not have is on an interface of our own (org.machined(5)).
	OwnInterface = "org.machined.Import1"
)

// Error names of org.freedesktop.import1(5).
const (
	ErrorNoSuchTransfer     = BusName + ".NoSuchTransfer"
	ErrorTransferInProgress = BusName + ".TransferInProgress"
)

// Flags of the methods whose names end in Ex.
const (
	FlagForce        = uint64(1)
	FlagReadOnly     = uint64(2)
	FlagKeepDownload = uint64(4)
)

// Results of a transfer, as TransferRemoved has them.
const (
	ResultDone     = "done"
	ResultCanceled = "canceled"
	ResultFailed   = "failed"
)

// UnknownProgress is the progress of a transfer that cannot tell.
const UnknownProgress = -math.MaxFloat64

// Transfer is one row of ListTransfers.
type Transfer struct {
	ID       uint32
	Type     string
	Remote   string
	Local    string
	Progress float64 // 0.0 to 1.0
	Path     godbus.ObjectPath
}

// TransferEx is one row of ListTransfersEx.
type TransferEx struct {
	ID       uint32
	Type     string
	Remote   string
	Local    string
	Class    string
	Progress float64
	Path     godbus.ObjectPath
}

// Image is one row of ListImages. Times are in microseconds since 1970, sizes in
// bytes; 2^64-1 is unknown.
type Image struct {
	Class, Name, Type, Path string
	ReadOnly                bool
	Created, Modified       uint64
	Usage, UsageExclusive   uint64
	Limit, LimitExclusive   uint64
}

// TransferLabel is the last element of a transfer's object path.
func TransferLabel(id uint32) string { return "_" + strconv.FormatUint(uint64(id), 10) }

// TransferPath is the object path of a transfer.
func TransferPath(id uint32) godbus.ObjectPath {
	return TransferParent + "/" + godbus.ObjectPath(TransferLabel(id))
}

// ParseTransferLabel is the inverse of TransferLabel.
func ParseTransferLabel(label string) (uint32, bool) {
	if label == "" || label[0] != '_' {
		return 0, false
	}
	id, err := strconv.ParseUint(label[1:], 10, 32)
	return uint32(id), err == nil && id != 0 && TransferLabel(uint32(id)) == label
}
