package image

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"machined/internal/sys"

	"golang.org/x/sys/unix"
)

// newIdentity gives the tree below root, an open directory, a random machine id
// and name as its host name, each where it has one: a system that makes them at
// its first boot is left to do so.
func newIdentity(root int, name string) error {
	if data, err := readIn(root, "etc/machine-id"); err == nil {
		if old := parseMachineID(data); old != [16]byte{} {
			id := freshID()
			if err := replaceIn(root, "etc/machine-id", id); err != nil {
				return err
			}
			// D-Bus has a copy where it is not a link to the other.
			if data, err := readIn(root, "var/lib/dbus/machine-id"); err == nil && parseMachineID(data) == old {
				if err := replaceIn(root, "var/lib/dbus/machine-id", id); err != nil {
					return err
				}
			}
		}
	}
	data, err := readIn(root, "etc/hostname")
	if err != nil || parseHostname(data) == "" || parseHostname(name) != name || name == "" {
		return nil //nolint:nilerr // it has none, or the image's name can be none
	}
	return replaceIn(root, "etc/hostname", name+"\n")
}

// freshSystem makes a system that has just been installed one that has not booted
// yet, and calls it name: programs that install leave the host's name and id.
func freshSystem(root int, name string) error {
	if _, err := readIn(root, "etc/machine-id"); err == nil {
		if err := replaceIn(root, "etc/machine-id", ""); err != nil {
			return err
		}
	}
	if _, err := readIn(root, "etc/hostname"); err != nil || parseHostname(name) != name {
		return nil //nolint:nilerr // as above
	}
	return replaceIn(root, "etc/hostname", name+"\n")
}

// freshID is a random machine id (machine-id(5): a UUID of version 4) as its file has it.
func freshID() string {
	var id [16]byte
	_, _ = rand.Read(id[:])
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return hex.EncodeToString(id[:]) + "\n"
}

// replaceIn writes a new file in the place of a regular one below root, with its
// owner and mode. A symlink is left alone: what it points to may be shared.
func replaceIn(root int, file, data string) error {
	fail := func(err error) error { return fmt.Errorf("replace /%s: %w", file, err) }
	dir, err := sys.OpenIn(root, path.Dir(file), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = dir.Close() }()
	var st unix.Stat_t
	base, temp := path.Base(file), TempName(path.Base(file))
	if err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	fd, err := unix.Openat(int(dir.Fd()), temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fail(err)
	}
	out := os.NewFile(uintptr(fd), temp)
	_, err = out.WriteString(data)
	err = errors.Join(err, unix.Fchown(fd, int(st.Uid), int(st.Gid)), out.Chmod(fs.FileMode(st.Mode&0o777)), out.Sync(), out.Close())
	if err == nil {
		err = unix.Renameat(int(dir.Fd()), temp, int(dir.Fd()), base)
	}
	if err != nil {
		_ = unix.Unlinkat(int(dir.Fd()), temp, 0)
		return fail(err)
	}
	return nil
}
