package seccomp

import "golang.org/x/sys/unix"

var abis = []abi{
	{audit: unix.AUDIT_ARCH_MIPSEL64, calls: callsmips64le},
	{audit: unix.AUDIT_ARCH_MIPSEL, calls: callsmipsle},
}
