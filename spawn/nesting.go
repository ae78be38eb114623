package spawn

import (
	"golang.org/x/sys/unix"

	"machined/internal/caps"
	"machined/internal/uidrange"
	"machined/spawn/settings"
)

// nestingCaps are what a container engine gives to its containers or needs for
// their networks. In a user namespace of the machine's own they say nothing about
// the host: it has no network namespace of the host's to administer.
var nestingCaps = caps.Bit(unix.CAP_NET_ADMIN) | caps.Bit(unix.CAP_NET_BIND_SERVICE) | caps.Bit(unix.CAP_IPC_LOCK)

// System calls of container engines. Keyrings belong to users, and the machine's
// root is the host's where there is no user namespace: then the calls are absent,
// which engines take in their stride. So it is with bpf(2), but engines can't do
// without it there to keep devices from containers, and it is all of the host.
const (
	nestingCalls = "@keyring @memlock @pkey bpf pidfd_getfd"
	absentCalls  = "@keyring"
)

// NestingUsers gives a machine with nesting a user namespace where nobody said
// anything about that.
func (o *Options) NestingUsers() {
	if o.Nesting {
		o.Users, o.UsersIfAble = settings.PrivateUsers{Mode: settings.UserPick}, true
	}
}

// ranges is how many ranges of UIDs the machine wants.
func (o *Options) ranges() uint32 {
	if o.Nesting {
		return uidrange.Nested
	}
	return 1
}
