package uidrange

import (
	"fmt"
	"os"
)

// Nested is how many ranges a machine gets in which machines shall run that have
// user namespaces of their own: its own one, seven for its users' subordinate IDs
// (subuid(5)), and those from Min on for machines.
const Nested = 32

// Extent are the IDs from 0 up to End, which is not one of them.
type Extent struct{ End uint64 }

// everything is what the host's own user namespace has.
var everything = Extent{1 << 32}

// ownMap reads how many IDs this process's user namespace has in a row from 0 on:
// those may it give to others (user_namespaces(7)).
func ownMap() Extent {
	end := everything.End
	for _, name := range []string{"/proc/self/uid_map", "/proc/self/gid_map"} {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		var inside, outside, count uint64
		n, err := fmt.Fscan(f, &inside, &outside, &count)
		f.Close()
		if n != 3 || err != nil {
			continue
		}
		if inside != 0 {
			count = 0
		}
		end = min(end, count)
	}
	return Extent{end}
}

// pool are the ranges that machines may have.
type pool struct{ first, last uint32 } // bases; first > last: none

func (p Picker) pool() pool {
	all := everything
	if p.Mapped != nil {
		all = p.Mapped()
	}
	if all.End >= Max+Size {
		return pool{Min, Max}
	}
	ranges := uint32(all.End / Size)
	first := uint32(Min)
	if ranges <= Min/Size {
		// Inside a machine that has few itself. The lower half are for its own users.
		first = (ranges + 1) / 2 * Size
	}
	if ranges < 2 {
		return pool{1, 0}
	}
	return pool{first, (ranges - 1) * Size}
}

// few tells whether there are so few that each can be tried.
func (p pool) few() bool { return p != pool{Min, Max} }

func (p pool) ranges() uint32 {
	if p.first > p.last {
		return 0
	}
	return (p.last-p.first)/Size + 1
}

// has tells whether a range, and those that follow it, are of the pool.
func (p pool) has(base, ranges uint32) bool {
	return base&(Size-1) == 0 && base >= p.first && uint64(base)+uint64(ranges-1)*Size <= uint64(p.last)
}

// nth is the range that a number stands for, as systemd-nspawn narrows a hash.
func (p pool) nth(n uint32) uint32 {
	if p.few() {
		return p.first + n%p.ranges()*Size
	}
	return (n%(Max-Min) + Min) &^ (Size - 1)
}
