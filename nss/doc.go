// Package nss owns the daemon's end of the socket that libnss_mymachines.so.2
// asks (the C module beside it, in module/): the bounded format of questions
// and answers, and the ranking of addresses. It finds nothing out itself: the
// Backend does.
//
// The format is described in module/ask.h; one SOCK_SEQPACKET record carries
// the question, one the answer, and the connection is over.
package nss

// SocketPath is where the module asks.
const SocketPath = "/run/systemd/machine/nss"

// SocketMode lets every user ask.
const SocketMode = 0o666
