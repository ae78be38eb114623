package transfer

import (
	"archive/tar"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"machined/internal/sys"

	"golang.org/x/sys/unix"
)

func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.NsecToTimespec(t.UnixNano())
}

// setAttributes gives a file the attributes of its header. The file may be open
// as O_PATH. The owner comes first: changing it drops set-uid bits and
// capabilities.
func setAttributes(f *os.File, h *tar.Header) error {
	fd := int(f.Fd())
	if err := unix.Fchownat(fd, "", h.Uid, h.Gid, unix.AT_EMPTY_PATH); err != nil {
		return os.NewSyscallError("chown", err)
	}
	times := []unix.Timespec{timespec(h.AccessTime), timespec(h.ModTime)}
	if h.Typeflag == tar.TypeSymlink {
		empty := [1]byte{}
		if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), uintptr(unsafe.Pointer(&empty)),
			uintptr(unsafe.Pointer(&times[0])), unix.AT_EMPTY_PATH, 0, 0); errno != 0 {
			return os.NewSyscallError("utimensat", errno)
		}
		return nil
	}
	path := sys.FDPath(f)
	if err := unix.Chmod(path, uint32(h.Mode)&0o7777); err != nil {
		return os.NewSyscallError("chmod", err)
	}
	for key, value := range h.PAXRecords {
		if err := setRecord(pathXattr(path), key, value); err != nil {
			return err
		}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, times, 0); err != nil {
		return os.NewSyscallError("utimensat", err)
	}
	return nil
}

// setFileAttributes is setAttributes for a descriptor that is open for writing,
// which saves looking it up for each call. It leaves out the owner, or the mode,
// that the file was created with.
func setFileAttributes(fd int, h *tar.Header, owned, exact bool) error {
	if !owned {
		if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
			return os.NewSyscallError("chown", err)
		}
	}
	if !exact {
		if err := unix.Fchmod(fd, uint32(h.Mode)&0o7777); err != nil {
			return os.NewSyscallError("chmod", err)
		}
	}
	for key, value := range h.PAXRecords {
		set := func(name string, data []byte) error { return unix.Fsetxattr(fd, name, data, 0) }
		if err := setRecord(set, key, value); err != nil {
			return err
		}
	}
	times := []unix.Timespec{timespec(h.AccessTime), timespec(h.ModTime)}
	if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times[0])), 0, 0, 0); errno != 0 {
		return os.NewSyscallError("utimensat", errno)
	}
	return nil
}

// Extended attributes that no archive may bring. What speaks to overlayfs would have it
// read an image's clones and snapshots as layers of its own, and what is ours says
// what we have found out about a file.
var (
	armedInTrees  = []string{"trusted.overlay.", "trusted.machined.", "user.machined."}
	armedInLayers = append([]string{"user.overlay."}, armedInTrees...)
)

// disarm takes attributes with these prefixes out of a header. It returns one of them,
// or "" when there were none.
func disarm(h *tar.Header, prefixes []string) (name string) {
	for key := range h.PAXRecords {
		attribute, ok := strings.CutPrefix(key, xattrRecord)
		if !ok {
			if attribute, ok = strings.CutPrefix(key, libXattr); !ok {
				continue
			}
			if plain, err := url.PathUnescape(attribute); err == nil {
				attribute = plain
			}
		}
		for _, prefix := range prefixes {
			if strings.HasPrefix(attribute, prefix) {
				delete(h.PAXRecords, key)
				name = attribute
			}
		}
	}
	return name
}

// xattrSetter sets one extended attribute of some file.
type xattrSetter func(name string, data []byte) error

func pathXattr(path string) xattrSetter {
	return func(name string, data []byte) error { return unix.Setxattr(path, name, data, 0) }
}

// Names of extended header records, as GNU tar and bsdtar write them.
const (
	xattrRecord   = "SCHILY.xattr."
	libXattr      = "LIBARCHIVE.xattr."
	aclAccess     = "SCHILY.acl.access"
	aclDefault    = "SCHILY.acl.default"
	xattrAccess   = "system.posix_acl_access"
	xattrDefault  = "system.posix_acl_default"
	xattrNameMax  = 255
	xattrValueMax = 64 << 10
	xattrListMax  = 64 << 10
)

func setRecord(set xattrSetter, key, value string) error {
	var name string
	var data []byte
	switch {
	case strings.HasPrefix(key, xattrRecord):
		name, data = key[len(xattrRecord):], []byte(value)
	case strings.HasPrefix(key, libXattr):
		var err error
		if name, err = url.PathUnescape(key[len(libXattr):]); err != nil {
			return nil //nolint:nilerr // not a name that any program writes
		}
		if data, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "=")); err != nil {
			return nil //nolint:nilerr // as above
		}
	case key == aclAccess || key == aclDefault:
		acl, err := parseACL(value)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrArchive, err)
		}
		name, data = xattrAccess, acl
		if key == aclDefault {
			name = xattrDefault
		}
	default:
		return nil
	}
	if name == "" || len(name) > xattrNameMax || len(data) > xattrValueMax || name == "security.selinux" {
		return nil
	}
	err := set(name, data)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
		return nil // what this file system or kernel cannot keep is left out
	}
	return os.NewSyscallError("setxattr "+name, err)
}

// Tags of entries of an ACL (linux/posix_acl.h), in their order.
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
	aclVersion  = 2
	aclNoID     = ^uint32(0)
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// parseACL turns the text form of an ACL (acl(5)) into the form of the kernel.
// Ids must be numbers, either in place of the name or after the permissions.
func parseACL(text string) ([]byte, error) {
	var entries []aclEntry
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == '\n' || r == ' ' }) {
		if word[0] == '#' {
			continue
		}
		parts := strings.Split(word, ":")
		if len(parts) == 2 && (parts[0] == "mask" || parts[0] == "other" || parts[0] == "m" || parts[0] == "o") {
			parts = []string{parts[0], "", parts[1]}
		}
		if len(parts) < 3 {
			return nil, fmt.Errorf("bad ACL entry %q", shorten(word))
		}
		entry := aclEntry{id: aclNoID}
		for i, c := range "rwx" {
			if strings.ContainsRune(parts[2], c) {
				entry.perm |= 4 >> i
			}
		}
		named := parts[1] != ""
		switch parts[0] {
		case "user", "u":
			entry.tag = aclUserObj
			if named {
				entry.tag = aclUser
			}
		case "group", "g":
			entry.tag = aclGroupObj
			if named {
				entry.tag = aclGroup
			}
		case "mask", "m":
			entry.tag, named = aclMask, false
		case "other", "o":
			entry.tag, named = aclOther, false
		default:
			return nil, fmt.Errorf("bad ACL entry %q", shorten(word))
		}
		if named {
			id, err := strconv.ParseUint(parts[1], 10, 32)
			if err != nil && len(parts) > 3 {
				id, err = strconv.ParseUint(parts[3], 10, 32)
			}
			if err != nil {
				return nil, fmt.Errorf("ACL entry %q has no numeric id", shorten(word))
			}
			entry.id = uint32(id)
		}
		entries = append(entries, entry)
	}
	sort.SliceStable(entries, func(i, j int) bool {
		if entries[i].tag != entries[j].tag {
			return entries[i].tag < entries[j].tag
		}
		return entries[i].id < entries[j].id
	})
	out := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range entries {
		out = binary.LittleEndian.AppendUint16(out, e.tag)
		out = binary.LittleEndian.AppendUint16(out, e.perm)
		out = binary.LittleEndian.AppendUint32(out, e.id)
	}
	return out, nil
}

// formatACL is the inverse of parseACL. It returns "" for what is not an ACL.
func formatACL(data []byte) string {
	if len(data) < 4 || (len(data)-4)%8 != 0 || binary.LittleEndian.Uint32(data) != aclVersion {
		return ""
	}
	var words []string
	for data = data[4:]; len(data) > 0; data = data[8:] {
		tag, perm := binary.LittleEndian.Uint16(data), binary.LittleEndian.Uint16(data[2:])
		mode := []byte("---")
		for i, c := range []byte("rwx") {
			if perm&(4>>i) != 0 {
				mode[i] = c
			}
		}
		id := strconv.FormatUint(uint64(binary.LittleEndian.Uint32(data[4:])), 10)
		kind := map[uint16]string{aclUserObj: "user:", aclUser: "user:" + id, aclGroupObj: "group:", aclGroup: "group:" + id, aclMask: "mask:", aclOther: "other:"}[tag]
		if kind == "" {
			return ""
		}
		words = append(words, kind+":"+string(mode))
	}
	return strings.Join(words, ",")
}
