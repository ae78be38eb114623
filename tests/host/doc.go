// Package host builds and boots Debian test hosts: systemd as PID 1 in
// namespaces of its own, with a system bus, polkit and Debian's stock
// systemd-container, and over it, unless asked for stock, the product as
// `make install` leaves it.
//
// It owns the trees in the cache, the overlay, cgroup and namespaces of each
// host, and their end: a reaper process outlives the test binary and removes
// everything, also after a panic or a signal. It shares no code with the
// product, so that a bug there cannot hide here. It asserts nothing about the
// product: that is what the suites are for.
package host
