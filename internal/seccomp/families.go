package seccomp

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Families says which address families sockets may have (address_families(7)).
type Families struct {
	// Only lets in no others than Allow, which may be empty.
	Only  bool
	Allow []int
	Deny  []int // counts for more than Allow
}

// families are the kernel's, by their names in <sys/socket.h>.
var families = map[string]int{
	"AF_UNSPEC": unix.AF_UNSPEC, "AF_UNIX": unix.AF_UNIX, "AF_LOCAL": unix.AF_UNIX, "AF_FILE": unix.AF_UNIX, "AF_INET": unix.AF_INET,
	"AF_AX25": unix.AF_AX25, "AF_IPX": unix.AF_IPX, "AF_APPLETALK": unix.AF_APPLETALK, "AF_NETROM": unix.AF_NETROM,
	"AF_BRIDGE": unix.AF_BRIDGE, "AF_ATMPVC": unix.AF_ATMPVC, "AF_X25": unix.AF_X25, "AF_INET6": unix.AF_INET6,
	"AF_ROSE": unix.AF_ROSE, "AF_DECnet": unix.AF_DECnet, "AF_NETBEUI": unix.AF_NETBEUI, "AF_SECURITY": unix.AF_SECURITY,
	"AF_KEY": unix.AF_KEY, "AF_NETLINK": unix.AF_NETLINK, "AF_ROUTE": unix.AF_ROUTE, "AF_PACKET": unix.AF_PACKET, "AF_ASH": unix.AF_ASH,
	"AF_ECONET": unix.AF_ECONET, "AF_ATMSVC": unix.AF_ATMSVC, "AF_RDS": unix.AF_RDS, "AF_SNA": unix.AF_SNA, "AF_IRDA": unix.AF_IRDA,
	"AF_PPPOX": unix.AF_PPPOX, "AF_WANPIPE": unix.AF_WANPIPE, "AF_LLC": unix.AF_LLC, "AF_IB": unix.AF_IB, "AF_MPLS": unix.AF_MPLS,
	"AF_CAN": unix.AF_CAN, "AF_TIPC": unix.AF_TIPC, "AF_BLUETOOTH": unix.AF_BLUETOOTH, "AF_IUCV": unix.AF_IUCV, "AF_RXRPC": unix.AF_RXRPC,
	"AF_ISDN": unix.AF_ISDN, "AF_PHONET": unix.AF_PHONET, "AF_IEEE802154": unix.AF_IEEE802154, "AF_CAIF": unix.AF_CAIF,
	"AF_ALG": unix.AF_ALG, "AF_NFC": unix.AF_NFC, "AF_VSOCK": unix.AF_VSOCK, "AF_KCM": unix.AF_KCM, "AF_QIPCRTR": unix.AF_QIPCRTR,
	"AF_SMC": unix.AF_SMC, "AF_XDP": unix.AF_XDP, "AF_MCTP": unix.AF_MCTP,
}

// Family returns the number of an address family by its name.
func Family(name string) (int, bool) { n, ok := families[name]; return n, ok }

// CompileFamilies returns a filter, to stand beside that of Compile, by which socket
// calls for other families fail with EAFNOSUPPORT; socketpair(2) is as harmless as a pipe. On ABIs that have the call
// socketcall(2), whose arguments a filter can't see, that one is absent.
func CompileFamilies(f Families) []unix.SockFilter {
	refuse := ret(retErrno(unix.EAFNOSUPPORT))
	allow := ret(unix.SECCOMP_RET_ALLOW)
	verdicts := []unix.SockFilter{load(argument(0))}
	listed := func(list []int, verdict unix.SockFilter) {
		list = slices.Clone(list)
		slices.Sort(list)
		for _, family := range slices.Compact(list) {
			verdicts = append(verdicts, jump(unix.BPF_JEQ, uint32(family), 0, 1), verdict)
		}
	}
	listed(f.Deny, refuse)
	listed(f.Allow, allow)
	if f.Only || len(f.Allow) > 0 {
		verdicts = append(verdicts, refuse)
	} else {
		verdicts = append(verdicts, allow)
	}
	prog := []unix.SockFilter{load(offArch)}
	for _, a := range abis {
		body := []unix.SockFilter{load(offNr)}
		for _, c := range a.calls {
			switch c.name {
			case "socketcall":
				body = append(body, jump(unix.BPF_JEQ, c.nr, 0, 1), ret(retErrno(unix.ENOSYS)))
			case "socket":
				body = append(body, jump(unix.BPF_JEQ, c.nr, 1, 0), always(uint32(len(verdicts))))
				body = append(body, verdicts...)
			}
		}
		body = append(body, allow)
		prog = append(prog, jump(unix.BPF_JEQ, a.audit, 1, 0), always(uint32(len(body))))
		prog = append(prog, body...)
	}
	return append(prog, allow)
}

// ParseFamilies adds a list of names to f: "none", names, or after ~ those that are
// forbidden. The empty list takes all restrictions back.
func (f *Families) ParseFamilies(words []string, deny bool) error {
	if len(words) == 0 && !deny {
		*f = Families{}
		return nil
	}
	if len(words) == 1 && words[0] == "none" && !deny {
		*f = Families{Only: true}
		return nil
	}
	var list []int
	for _, w := range words {
		n, ok := Family(w)
		if !ok {
			return fmt.Errorf("%q is no address family", w)
		}
		list = append(list, n)
	}
	if deny {
		f.Deny = append(f.Deny, list...)
	} else {
		f.Only, f.Allow = true, append(f.Allow, list...)
	}
	return nil
}

// Restricts tells whether there is anything to filter.
func (f *Families) Restricts() bool { return f.Only || len(f.Allow)+len(f.Deny) > 0 }
