// Package vm boots a Debian test machine with a kernel of its own in QEMU: what test
// hosts in namespaces can't have is there, all cgroup controllers, device mapper,
// ipvlan and a real udev. `make test-vm` runs its suite.
//
// It is no part of `make test`: under emulation a boot takes from 20 seconds to some
// minutes. QEMU emulates the processor unless told to do otherwise ($MACHINED_TEST_ACCEL), so
// that it needs nothing of the machine that it runs on. An agent, which is the
// test binary itself, runs commands in the machine; it is reached by a virtio port.
// Trees and kernels are those of package host, as is the rule that nothing stays behind.
package vm
