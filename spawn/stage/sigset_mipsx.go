//go:build mips || mipsle || mips64 || mips64le

package stage

// sigsetSize is the kernel's sizeof(sigset_t), in bytes.
const sigsetSize = 16
