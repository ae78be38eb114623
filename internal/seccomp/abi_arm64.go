package seccomp

import "golang.org/x/sys/unix"

var abis = []abi{
	{audit: unix.AUDIT_ARCH_AARCH64, calls: callsarm64},
	{audit: unix.AUDIT_ARCH_ARM, calls: callsarm},
}
