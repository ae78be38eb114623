package seccomp

import "golang.org/x/sys/unix"

var abis = []abi{
	{audit: unix.AUDIT_ARCH_I386, calls: calls386},
}
