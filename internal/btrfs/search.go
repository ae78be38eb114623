package btrfs

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Tree and item numbers of linux/btrfs_tree.h.
const (
	rootTree        = 1
	quotaTree       = 8
	rootBackrefKey  = 144
	rootRefKey      = 156
	qgroupInfoKey   = 242
	qgroupLimitKey  = 244
	qgroupRelKey    = 246
	searchArgsSize  = 4096
	searchKeySize   = 104
	searchHeadSize  = 32
	qgroupLevelBits = 48
)

type key struct {
	object uint64
	kind   uint32
	offset uint64
}

// search calls each for all items of a tree between two keys, in key order,
// until it returns false. It needs CAP_SYS_ADMIN.
func search(f *os.File, tree uint64, from, to key, each func(k key, item []byte) bool) error {
	le := binary.LittleEndian
	for {
		var args [searchArgsSize]byte
		le.PutUint64(args[0:], tree)
		le.PutUint64(args[8:], from.object)
		le.PutUint64(args[16:], to.object)
		le.PutUint64(args[24:], from.offset)
		le.PutUint64(args[32:], to.offset)
		le.PutUint64(args[40:], 0)
		le.PutUint64(args[48:], ^uint64(0))
		le.PutUint32(args[56:], from.kind)
		le.PutUint32(args[60:], to.kind)
		le.PutUint32(args[64:], 256)
		if err := ioctl(f, "BTRFS_IOC_TREE_SEARCH", iocTreeSearch, unsafe.Pointer(&args)); err != nil {
			return err
		}
		count := le.Uint32(args[64:])
		if count == 0 {
			return nil
		}
		rest := args[searchKeySize:]
		last := from
		for range count {
			if len(rest) < searchHeadSize {
				return nil
			}
			last = key{object: le.Uint64(rest[8:]), offset: le.Uint64(rest[16:]), kind: le.Uint32(rest[24:])}
			size := int(le.Uint32(rest[28:]))
			rest = rest[searchHeadSize:]
			if size > len(rest) {
				return nil
			}
			// The kernel compares keys as wholes, so kinds outside the range occur.
			if last.kind >= from.kind && last.kind <= to.kind && !each(last, rest[:size]) {
				return nil
			}
			rest = rest[size:]
		}
		from = last
		switch {
		case from.offset < ^uint64(0):
			from.offset++
		case from.kind < 255:
			from.kind, from.offset = from.kind+1, 0
		default:
			from.object, from.kind, from.offset = from.object+1, 0, 0
		}
	}
}

// Usage and limits of one subvolume in bytes; ^uint64(0) is unknown or none.
type Limits struct {
	Referenced, Exclusive       uint64
	ReferencedMax, ExclusiveMax uint64
}

// Quota reads usage and limits of the subvolume that dir is the root of: from
// the highest quota group that holds just it and what is nested in it, else from
// its own. It returns ENODATA when quota is off.
func Quota(dir *os.File) (Limits, error) {
	info, err := Info(dir)
	if err != nil {
		return Limits{}, err
	}
	group, err := subtreeGroup(dir, info.ID)
	if err != nil {
		return Limits{}, err
	}
	return groupLimits(dir, group)
}

// groupLimits reads one quota group.
func groupLimits(dir *os.File, group uint64) (Limits, error) {
	le := binary.LittleEndian
	limits := Limits{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
	found := false
	err := search(dir, quotaTree, key{0, qgroupInfoKey, group}, key{0, qgroupLimitKey, group}, func(k key, item []byte) bool {
		if k.object != 0 || k.offset != group || len(item) < 40 {
			return true
		}
		switch k.kind {
		case qgroupInfoKey: // generation, rfer, rfer_cmpr, excl, excl_cmpr
			limits.Referenced, limits.Exclusive = le.Uint64(item[8:]), le.Uint64(item[24:])
			found = true
		case qgroupLimitKey: // flags, max_rfer, max_excl, rsv_rfer, rsv_excl
			if flags := le.Uint64(item); flags&1 != 0 {
				if v := le.Uint64(item[8:]); v != 0 {
					limits.ReferencedMax = v
				}
			}
			if flags := le.Uint64(item); flags&2 != 0 {
				if v := le.Uint64(item[16:]); v != 0 {
					limits.ExclusiveMax = v
				}
			}
		}
		return true
	})
	if errors.Is(err, unix.ENOENT) {
		err = os.NewSyscallError("read btrfs quota", unix.ENODATA)
	}
	if err != nil {
		return Limits{}, err
	}
	if !found {
		return Limits{}, os.NewSyscallError("read btrfs quota", unix.ENODATA)
	}
	return limits, nil
}

// parents lists the quota groups that a group is assigned to.
func parents(dir *os.File, group uint64) ([]uint64, error) {
	return related(dir, group, func(level, other uint64) bool { return other > level })
}

// members lists the quota groups that are assigned to a group.
func members(dir *os.File, group uint64) ([]uint64, error) {
	return related(dir, group, func(level, other uint64) bool { return other < level })
}

// related lists the groups that a group is related to, either way, on levels that are wanted.
func related(dir *os.File, group uint64, want func(level, other uint64) bool) ([]uint64, error) {
	var list []uint64
	err := search(dir, quotaTree, key{group, qgroupRelKey, 0}, key{group, qgroupRelKey, ^uint64(0)}, func(k key, _ []byte) bool {
		// Relations are stored in both directions; the parent has the higher level.
		if k.object == group && want(group>>qgroupLevelBits, k.offset>>qgroupLevelBits) {
			list = append(list, k.offset)
		}
		return true
	})
	if errors.Is(err, unix.ENOENT) {
		err = os.NewSyscallError("read btrfs quota", unix.ENODATA)
	}
	return list, err
}

// subtreeGroup finds the group that accounts for a subvolume with all that is
// nested in it: one with the subvolume's own id at a level above 0, else level 0.
func subtreeGroup(dir *os.File, id uint64) (uint64, error) {
	groups, err := ownGroups(dir, id)
	if err != nil {
		return 0, err
	}
	return slices.Max(groups), nil
}

// linked says whether a subvolume lies in some directory of the file system of dir.
func linked(dir *os.File, id uint64) (bool, error) {
	there := false
	err := search(dir, rootTree, key{id, rootBackrefKey, 0}, key{id, rootBackrefKey, ^uint64(0)}, func(k key, _ []byte) bool {
		there = k.object == id
		return !there
	})
	return there, err
}

// Child is a subvolume nested directly in another.
type Child struct {
	ID    uint64
	DirID uint64 // inode of the directory that holds it
	Name  string
}

// Children lists the subvolumes nested directly in the subvolume id.
func Children(dir *os.File, id uint64) ([]Child, error) {
	le := binary.LittleEndian
	var list []Child
	err := search(dir, rootTree, key{id, rootRefKey, 0}, key{id, rootRefKey, ^uint64(0)}, func(k key, item []byte) bool {
		if k.object != id || len(item) < 18 {
			return true
		}
		n := int(le.Uint16(item[16:]))
		if 18+n > len(item) {
			return true
		}
		list = append(list, Child{ID: k.offset, DirID: le.Uint64(item), Name: string(item[18 : 18+n])})
		return true
	})
	return list, err
}
