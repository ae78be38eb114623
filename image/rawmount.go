package image

import (
	"errors"
	"fmt"
	"os"

	"machined/internal/gpt"
	"machined/internal/loopdev"

	"golang.org/x/sys/unix"
)

// mountOptions keep a file system from being written to when it is mounted
// read-only: by default some replay their journal.
var mountOptions = map[string]string{"ext4": "noload", "ext3": "noload", "xfs": "norecovery", "btrfs": "nologreplay"}

// mountPartition mounts a partition of a disk image read-only, in no mount
// namespace at all: the mount goes away with the descriptor that is returned.
func mountPartition(disk *os.File, part gpt.Partition) (*os.File, error) {
	if part.FSType == "" {
		return nil, fmt.Errorf("partition %d: %w: unknown file system", part.Number, ErrNotSupported)
	}
	dev, err := loopdev.Attach(disk, part.Offset, part.Size, true)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dev.Close() }()
	fs, err := unix.Fsopen(part.FSType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		if errors.Is(err, unix.ENODEV) {
			return nil, fmt.Errorf("partition %d: %w: the kernel does not know %s", part.Number, ErrNotSupported, part.FSType)
		}
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer func() { _ = unix.Close(fs) }()
	if err := unix.FsconfigSetString(fs, "source", dev.Path); err != nil {
		return nil, os.NewSyscallError("fsconfig source", err)
	}
	if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
		return nil, os.NewSyscallError("fsconfig ro", err)
	}
	if option := mountOptions[part.FSType]; option != "" {
		_ = unix.FsconfigSetFlag(fs, option) // a kernel without it mounts read-only all the same
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("mount partition %d: %w", part.Number, os.NewSyscallError("fsconfig create", err))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(fd), disk.Name()), nil
}

// rawMetadata reads what a disk image says about itself.
func rawMetadata(path string) (Metadata, error) {
	disk, err := os.Open(path)
	if err != nil {
		return Metadata{}, err
	}
	defer func() { _ = disk.Close() }()
	size, err := disk.Seek(0, 2)
	if err != nil {
		return Metadata{}, err
	}
	table, err := gpt.Read(disk, size)
	if err != nil {
		return Metadata{}, fmt.Errorf("%w: %w", ErrNoSystem, err)
	}
	plan, err := table.Plan()
	if err != nil {
		return Metadata{}, fmt.Errorf("%w: %w", ErrNoSystem, err)
	}
	var m Metadata
	for _, mount := range plan {
		if mount.Where != "/" && (mount.Where != "/usr" || m.OSRelease != nil) {
			continue
		}
		root, err := mountPartition(disk, mount.Partition)
		if err != nil {
			return Metadata{}, err
		}
		if mount.Where == "/" {
			m = readMetadata(int(root.Fd()))
		} else if data, err := readIn(int(root.Fd()), "lib/os-release"); err == nil {
			m.OSRelease = parseEnv(data)
		}
		_ = root.Close()
	}
	return m, nil
}
