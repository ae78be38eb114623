// Package keyring hands something to the kernel by a key (keyrings(7)) that exists
// for the length of one call.
package keyring

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// With calls f while a key of the given type and description is in the keyring of the
// calling thread. The key is gone when it returns. A description of a "logon" key
// has to have a prefix that ends with a colon.
func With(keyType, description string, payload []byte, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	id, err := unix.AddKey(keyType, description, payload, unix.KEY_SPEC_THREAD_KEYRING)
	if err != nil {
		return os.NewSyscallError("add_key", err)
	}
	defer func() {
		_, _ = unix.KeyctlInt(unix.KEYCTL_UNLINK, id, unix.KEY_SPEC_THREAD_KEYRING, 0, 0)
	}()
	return f()
}
