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

// Late says whether the file system of dir is one that puts off writing until Tree
// asks for it (ext4, delalloc), so that a Writeback spares time.
func Late(dir *os.File) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(dir.Fd()), &st) == nil && st.Type == ext4Magic
}

// Tree returns when all that is below dir, an open directory, is on the disk. It
// writes the file system that dir is on as a whole: waiting for each of many
// files costs a multiple of that.
func Tree(dir *os.File) error {
	return os.NewSyscallError("syncfs", unix.Syncfs(int(dir.Fd())))
}
