// Package integration holds the suites that run in booted test hosts
// (tests/host), built with the tag "integration". With IMPL=stock they run
// against systemd's own programs, which proves the suites themselves.
//
// A suite uses the installed programs, stock's clients beside them, and a bus
// connection of its own: never a package of the product.
package integration
