package seccomp

import "golang.org/x/sys/unix"

var abis = []abi{
	// x32 shares its number with x86-64 and has a bit set in every call; kernels have it turned off.
	{audit: unix.AUDIT_ARCH_X86_64, limit: 0x40000000, calls: callsamd64},
	{audit: unix.AUDIT_ARCH_I386, calls: calls386},
}
