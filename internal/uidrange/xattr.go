package uidrange

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	fileCaps   = "security.capability"
)

type attribute struct {
	name  string
	value []byte
}

// attributes returns what must be written to an inode after its owner changed.
func (s *shifter) attributes(path string, mode uint32) ([]attribute, error) {
	var list [1024]byte
	n, err := unix.Llistxattr(path, list[:])
	switch {
	case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ENOENT):
		return nil, nil
	case errors.Is(err, unix.ERANGE):
		return s.attributesOf(path, mode, [][]byte{[]byte(aclAccess), []byte(aclDefault), []byte(fileCaps)})
	case err != nil:
		return nil, &os.PathError{Op: "list attributes", Path: path, Err: err}
	case n == 0:
		return nil, nil
	}
	return s.attributesOf(path, mode, bytes.Split(list[:n], []byte{0}))
}

func (s *shifter) attributesOf(path string, mode uint32, names [][]byte) ([]attribute, error) {
	var out []attribute
	for _, name := range names {
		key := string(name)
		if key != aclAccess && key != aclDefault && key != fileCaps {
			continue
		}
		value, err := getxattr(path, key)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "get " + key, Path: path, Err: err}
		}
		switch key {
		case fileCaps:
			if v := shiftCaps(value, s.base); v != nil && mode&unix.S_IFMT == unix.S_IFREG {
				out = append(out, attribute{key, v})
			}
		default:
			if shiftACL(value, s.base) {
				out = append(out, attribute{key, value})
			}
		}
	}
	return out, nil
}

func getxattr(path, name string) ([]byte, error) {
	buf := make([]byte, 1024)
	for {
		n, err := unix.Lgetxattr(path, name, buf)
		if errors.Is(err, unix.ERANGE) && len(buf) < 1<<16 {
			buf = make([]byte, 1<<16)
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// shiftACL moves the named users and groups of an ACL (acl(5); the value is a
// version word and entries of tag, permissions, id) and tells whether any
// changed.
func shiftACL(v []byte, base uint32) bool {
	const version, user, group = 2, 0x02, 0x08
	if len(v) < 4 || (len(v)-4)%8 != 0 || binary.LittleEndian.Uint32(v) != version {
		return false
	}
	changed := false
	for e := v[4:]; len(e) > 0; e = e[8:] {
		if tag := binary.LittleEndian.Uint16(e); tag != user && tag != group {
			continue
		}
		old := binary.LittleEndian.Uint32(e[4:])
		if id := base | old&0xFFFF; id != old {
			binary.LittleEndian.PutUint32(e[4:], id)
			changed = true
		}
	}
	return changed
}

// shiftCaps returns file capabilities that count in the user namespace whose root
// is base (vfs_ns_cap_data of capabilities(7), "Namespaced file capabilities").
// It returns nil for a value it does not understand.
func shiftCaps(v []byte, base uint32) []byte {
	const revisionMask, revision2, revision3, flags = 0xFF000000, 0x02000000, 0x03000000, 0x1
	if len(v) != 20 && len(v) != 24 {
		return nil
	}
	magic := binary.LittleEndian.Uint32(v)
	if r := magic & revisionMask; r != revision2 && r != revision3 {
		return nil
	}
	out := make([]byte, 20, 24)
	copy(out, v[:20])
	if base == 0 {
		binary.LittleEndian.PutUint32(out, revision2|magic&flags)
		return out
	}
	binary.LittleEndian.PutUint32(out, revision3|magic&flags)
	return binary.LittleEndian.AppendUint32(out, base)
}
