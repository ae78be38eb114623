//go:build mips || mipsle || mips64 || mips64le

package stage

// SigsetSize is the kernel's sizeof(sigset_t), in bytes.
const SigsetSize = 16
