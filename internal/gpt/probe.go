package gpt

import (
	"bytes"
	"encoding/binary"
	"io"
)

// magics are what file systems and their like are known by. Order matters where
// one carries another's mark.
var magics = []struct {
	fs  string
	off int64
	sig string
}{
	{"crypto_LUKS", 0, "LUKS\xba\xbe"},
	{"DM_verity_hash", 0, "verity\x00\x00"},
	{"xfs", 0, "XFSB"},
	{"squashfs", 0, "hsqs"},
	{"erofs", 1024, "\xe2\xe1\xf5\xe0"},
	{"btrfs", 65536 + 64, "_BHRfS_M"},
	{"f2fs", 1024, "\x10\x20\xf5\xf2"},
	{"swap", 4096 - 10, "SWAPSPACE2"},
	{"iso9660", 32769, "CD001"},
}

// ProbeFS returns the type of the file system in a range of an image, by its name
// for mount(2), or what blkid(8) calls it where it is none: crypto_LUKS,
// DM_verity_hash, swap. It returns "" when it knows none.
func ProbeFS(r io.ReaderAt, offset, size int64) string {
	for _, m := range magics {
		if m.off+int64(len(m.sig)) > size {
			continue
		}
		if b := readAt(r, offset+m.off, len(m.sig)); b != nil && string(b) == m.sig {
			return m.fs
		}
	}
	if size >= 2048 {
		if sb := readAt(r, offset+1024, 128); sb != nil && sb[56] == 0x53 && sb[57] == 0xef {
			return ext(sb)
		}
	}
	if size >= 512 {
		if b := readAt(r, offset, 512); b != nil && b[510] == 0x55 && b[511] == 0xaa && isFAT(b) {
			return "vfat"
		}
	}
	return ""
}

// ext tells the generations apart by their features (ext4(5)).
func ext(sb []byte) string {
	const journal, ext4Incompatible, ext4ROCompatible = 0x4, 0x40 | 0x80 | 0x200, 0x8 | 0x10 | 0x20 | 0x40 | 0x400
	le := binary.LittleEndian
	switch {
	case le.Uint32(sb[96:])&ext4Incompatible != 0 || le.Uint32(sb[100:])&ext4ROCompatible != 0:
		return "ext4"
	case le.Uint32(sb[92:])&journal != 0:
		return "ext3"
	}
	return "ext2"
}

func isFAT(b []byte) bool {
	if b[0] != 0xeb && b[0] != 0xe9 {
		return false
	}
	sector, fats := binary.LittleEndian.Uint16(b[11:]), b[16]
	return (bytes.HasPrefix(b[54:], []byte("FAT")) || bytes.HasPrefix(b[82:], []byte("FAT32"))) &&
		sector >= 512 && sector&(sector-1) == 0 && fats >= 1 && fats <= 2
}
