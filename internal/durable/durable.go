// Package durable owns getting a tree that was just made onto the disk before it
// gets its name, so that after a power cut it is there as a whole or not at all.
// It makes and renames nothing.
package durable

import (
	"os"

	"golang.org/x/sys/unix"
)

// ext4Magic is EXT4_SUPER_MAGIC (statfs(2)); ext2 and ext3 have the same number
// and are served by the same driver.
const ext4Magic = 0xef53

// OwnFiles says whether Start spares time on the file system of fd: one that
// would put off writing until Tree asks for it (ext4, delalloc).
func OwnFiles(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == ext4Magic
}

// startSize is from which size, in bytes, a file is worth a request of its own.
// Most files are smaller, and most bytes are in larger ones.
const startSize = 256 << 10

// Start makes the kernel begin to write a file that is complete, and does not
// wait for it. It is a hint: what goes wrong shows in Tree.
func Start(fd int) {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && st.Size >= startSize {
		_ = unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
}

// Tree returns when all that is below dir, an open directory, is on the disk. It
// writes the file system that dir is on as a whole: waiting for each of many
// files costs a multiple of that.
func Tree(dir *os.File) error {
	return os.NewSyscallError("syncfs", unix.Syncfs(int(dir.Fd())))
}
