package nss

import (
	"cmp"
	"net/netip"
	"slices"
)

// Address is one address that a caller can reach.
type Address struct {
	IP netip.Addr
	// Scope is the host's interface that leads to a link-local address
	// (ipv6(7), sin6_scope_id); 0 for all others.
	Scope uint32
}

// Rank orders addresses by how well a caller reaches them: routable ones before
// link-local ones, IPv4 before IPv6, else as they were. Loopback, multicast and
// unspecified ones are dropped, and so is every scope that means nothing.
func Rank(addrs []Address) []Address {
	out := make([]Address, 0, len(addrs))
	seen := make(map[Address]struct{}, len(addrs))
	for _, a := range addrs {
		ip := a.IP.Unmap().WithZone("")
		if !ip.IsValid() || ip.IsLoopback() || ip.IsMulticast() || ip.IsUnspecified() {
			continue
		}
		if !(ip.Is6() && ip.IsLinkLocalUnicast()) {
			a.Scope = 0
		}
		a.IP = ip
		if _, ok := seen[a]; !ok {
			seen[a] = struct{}{}
			out = append(out, a)
		}
	}
	slices.SortStableFunc(out, func(a, b Address) int {
		return cmp.Or(cmp.Compare(distance(a), distance(b)), cmp.Compare(a.IP.BitLen(), b.IP.BitLen()))
	})
	return out
}

func distance(a Address) int {
	switch {
	case !a.IP.IsLinkLocalUnicast():
		return 0
	case a.IP.Is6() && a.Scope == 0:
		return 2 // nobody can connect there without guessing the interface
	}
	return 1
}

// cut keeps the best n addresses, at least a quarter of them of each family that
// has as many, so that a caller that needs one of the two finds it.
func cut(addrs []Address, n int) []Address {
	if len(addrs) <= n {
		return addrs
	}
	have := map[bool]int{}
	for _, a := range addrs {
		have[a.IP.Is4()]++
	}
	left := map[bool]int{true: n - min(have[false], n/4), false: n - min(have[true], n/4)}
	out := make([]Address, 0, n)
	for _, a := range addrs {
		if is4 := a.IP.Is4(); left[is4] > 0 && len(out) < n {
			left[is4]--
			out = append(out, a)
		}
	}
	return out
}

// filterFamily keeps the addresses of one family, for callers that take one
// only and so can't be told a scope (struct hostent). A link-local IPv6 address
// is of no use to them, so they get it only if the machine has nothing better.
func filterFamily(addrs []Address, family byte) []Address {
	if family == 0 {
		return addrs
	}
	routable := slices.ContainsFunc(addrs, func(a Address) bool { return !a.IP.IsLinkLocalUnicast() })
	return slices.DeleteFunc(slices.Clone(addrs), func(a Address) bool {
		return a.IP.Is4() != (family == 4) || routable && a.IP.Is6() && a.IP.IsLinkLocalUnicast()
	})
}
