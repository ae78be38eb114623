package btrfs

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// EnableQuota turns quota on for the file system of dir.
func EnableQuota(dir *os.File) error {
	args := struct{ cmd, status uint64 }{cmd: 1} // BTRFS_QUOTA_CTL_ENABLE
	return ioctl(dir, "BTRFS_IOC_QUOTA_CTL", iocQuotaCtl, unsafe.Pointer(&args))
}

func qgroup(dir *os.File, create bool, id uint64) error {
	args := struct{ create, id uint64 }{id: id}
	if create {
		args.create = 1
	}
	return ioctl(dir, "BTRFS_IOC_QGROUP_CREATE", iocQgroupCreate, unsafe.Pointer(&args))
}

// assign makes a quota group a part of another. What the child shares with others is
// counted anew then, by the kernel and on its own time.
func assign(dir *os.File, child, parent uint64) error {
	args := struct{ assign, src, dst uint64 }{1, child, parent}
	again, err := ioctlValue(dir, "BTRFS_IOC_QGROUP_ASSIGN", iocQgroupAssign, unsafe.Pointer(&args))
	if errors.Is(err, unix.EBUSY) { // it is counting
		if err := ioctl(dir, "BTRFS_IOC_QUOTA_RESCAN_WAIT", iocQuotaRescanWait, nil); err != nil {
			return err
		}
		again, err = ioctlValue(dir, "BTRFS_IOC_QGROUP_ASSIGN", iocQgroupAssign, unsafe.Pointer(&args))
	}
	if err == nil && again > 0 {
		var rescan [64]byte // struct btrfs_ioctl_quota_rescan_args
		if err := ioctl(dir, "BTRFS_IOC_QUOTA_RESCAN", iocQuotaRescan, unsafe.Pointer(&rescan)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return err
		}
	}
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// subtreeLevel is the quota group level at which a whole subtree is counted.
const subtreeLevel = uint64(255)

// AccountSubtree gives a subvolume a quota group that counts what will be nested
// in it too. It is harmless when there is one; it returns ENODATA or ENOTCONN
// when quota is off.
func AccountSubtree(dir *os.File) error {
	info, err := Info(dir)
	if err != nil {
		return err
	}
	return account(dir, info.ID, subtreeLevel, 0)
}

// Account gives a subvolume that lies in the directory pool a quota group of its
// own, as AccountSubtree does, which is a part of the one that counts the pool as a
// whole, if there is such a one. It returns ENODATA or ENOTCONN when quota is off.
func Account(dir, pool *os.File) error {
	info, err := Info(dir)
	if err != nil {
		return err
	}
	home, err := Info(pool)
	if err != nil {
		return err
	}
	whole, err := subtreeGroup(pool, home.ID)
	if err != nil {
		return err
	}
	if whole>>qgroupLevelBits < 2 {
		return account(dir, info.ID, subtreeLevel, 0)
	}
	return account(dir, info.ID, whole>>qgroupLevelBits-1, whole)
}

// Sweep removes the groups that Account has made in a pool of subvolumes that are gone:
// the kernel keeps them until it has cleaned up behind a subvolume.
func Sweep(pool *os.File) error {
	home, err := Info(pool)
	if err != nil {
		return err
	}
	whole := subtreeLevel<<qgroupLevelBits | home.ID
	list, err := members(pool, whole)
	if err != nil {
		return err
	}
	for _, group := range list {
		if group>>qgroupLevelBits == 0 {
			continue
		}
		there, err := linked(pool, group&(1<<qgroupLevelBits-1))
		if err != nil {
			return err
		}
		if !there {
			_ = qgroup(pool, false, group) // one that still counts something stays
		}
	}
	return nil
}

// account makes a group of the subvolume id at a level, with the subvolume's own in
// it, and puts it into another one; 0 is none.
func account(dir *os.File, id, level, into uint64) error {
	group := level<<qgroupLevelBits | id
	if err := qgroup(dir, true, group); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	// From above: what is counted in the lower one is then counted in both.
	if into != 0 {
		if err := assign(dir, group, into); err != nil {
			return err
		}
	}
	return assign(dir, id, group)
}

// ownGroups lists the quota groups that have a subvolume's id, its own one first.
func ownGroups(dir *os.File, id uint64) ([]uint64, error) {
	list := []uint64{id}
	up, err := parents(dir, id)
	for _, group := range up {
		if group&(1<<qgroupLevelBits-1) == id {
			list = append(list, group)
		}
	}
	return list, err
}

// SetLimit bounds what a subvolume may refer to, in bytes; ^uint64(0) lifts the limit.
func SetLimit(dir *os.File, limit uint64) error {
	info, err := Info(dir)
	if err != nil {
		return err
	}
	group, err := subtreeGroup(dir, info.ID)
	if err != nil {
		return err
	}
	args := struct{ group, flags, maxReferenced, maxExclusive, reservedReferenced, reservedExclusive uint64 }{
		group: group, flags: 1, maxReferenced: limit, // BTRFS_QGROUP_LIMIT_MAX_RFER
	}
	return ioctl(dir, "BTRFS_IOC_QGROUP_LIMIT", iocQgroupLimit, unsafe.Pointer(&args))
}
