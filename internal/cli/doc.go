// Package cli is what the command line clients share: option parsing by the
// rules of getopt_long(3), tables, colours, JSON, times and sizes as systemd's
// tools print them, the pager, ways to a bus, the polkit agent and the transfer
// verbs. It is a client and nothing else: it acts on no machine or image
// except by calling a service, and it keeps no state.
package cli
