// Package varlink owns the server side of the varlink protocol as systemd
// speaks it (https://varlink.org, sd-varlink(3)): framing, the service
// interface org.varlink.service, peer credentials, limits, and the passing of
// file descriptors to the caller. It knows nothing of machines, and it takes no
// authorisation decision; the services in the packages below it do.
//
// Descriptors that a caller sends are never received: no interface here takes
// any, and a read without room for them makes the kernel close them at once.
package varlink
