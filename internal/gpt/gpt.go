// Package gpt finds out what is on a disk image: a GPT or MBR partition table, or
// a bare file system, and which partition is to be mounted where (the
// Discoverable Partitions Specification).
//
// It only reads, through an io.ReaderAt, believes no length that it finds, and
// attaches and mounts nothing.
package gpt

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf16"
)

// Table is a kind of partition table.
type Table string

// The kinds.
const (
	TableNone Table = "none" // the whole image is one file system
	TableMBR  Table = "mbr"
	TableGPT  Table = "gpt"
)

// ErrNotImage says that neither a table nor a known file system was found.
var ErrNotImage = errors.New("no partition table and no known file system")

// ErrCorrupt is wrapped when a table was found that makes no sense.
var ErrCorrupt = errors.New("broken partition table")

// GUID is a partition's type or id, in the bytes of its text form.
type GUID [16]byte

// String returns the text form.
func (g GUID) String() string {
	h := hex.EncodeToString(g[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// Disk is what an image holds.
type Disk struct {
	Table      Table
	ID         GUID // GPT
	SectorSize int64
	Partitions []Partition // by number; one with number 0 for a bare file system
}

// Partition is one partition. Offset and Size are bytes and lie within the image.
type Partition struct {
	Number       int
	Offset, Size int64
	Type, ID     GUID   // GPT
	Label        string // GPT
	Flags        uint64 // GPT attributes
	MBRType      byte
	Bootable     bool   // MBR
	FSType       string // "" when unknown: see ProbeFS
}

// GPT attributes of the Discoverable Partitions Specification.
const (
	// flagNoBlockIO is UEFI's "no block IO protocol", by which an ESP is left alone.
	flagNoBlockIO = 1 << 1
	flagGrowFS    = 1 << 59
	flagReadOnly  = 1 << 60
	flagNoAuto    = 1 << 63
)

// NoAuto tells whether the partition asks to be left alone.
func (p Partition) NoAuto() bool { return p.Flags&flagNoAuto != 0 }

// ReadOnly tells whether the partition asks to be mounted read-only.
func (p Partition) ReadOnly() bool { return p.Flags&flagReadOnly != 0 }

// GrowFS tells whether the file system shall be grown to the partition's size.
func (p Partition) GrowFS() bool { return p.Flags&flagGrowFS != 0 }

const (
	headerSize    = 92
	maxEntries    = 1024
	maxEntrySize  = 4096
	entrySize     = 128
	gptProtective = 0xee
)

// Read looks at an image of size bytes.
func Read(r io.ReaderAt, size int64) (*Disk, error) {
	for _, sector := range []int64{512, 4096, 2048, 1024} {
		for _, at := range []int64{sector, size - size%sector - sector} { // the backup is in the last sector
			disk, err := readGPT(r, size, sector, at)
			if err != nil || disk != nil {
				return disk.probed(r), err
			}
		}
	}
	// A file system of its own may carry a boot sector that looks like an MBR, so
	// it is looked for first.
	if fs := ProbeFS(r, 0, size); fs != "" {
		return &Disk{Table: TableNone, SectorSize: 512, Partitions: []Partition{{Size: size, FSType: fs}}}, nil
	}
	disk, err := readMBR(r, size)
	if err != nil || disk != nil {
		return disk.probed(r), err
	}
	return nil, ErrNotImage
}

func (d *Disk) probed(r io.ReaderAt) *Disk {
	if d != nil {
		for i := range d.Partitions {
			p := &d.Partitions[i]
			p.FSType = ProbeFS(r, p.Offset, p.Size)
		}
	}
	return d
}

// readAt returns n bytes at off, nil if the image is shorter.
func readAt(r io.ReaderAt, off int64, n int) []byte {
	if off < 0 {
		return nil
	}
	b := make([]byte, n)
	if m, _ := r.ReadAt(b, off); m < n {
		return nil
	}
	return b
}

// readGPT returns nil, nil when there is no intact GPT header at the offset.
func readGPT(r io.ReaderAt, size, sector, at int64) (*Disk, error) {
	h := readAt(r, at, int(sector))
	if h == nil || !bytes.HasPrefix(h, []byte("EFI PART")) {
		return nil, nil
	}
	le := binary.LittleEndian
	length := le.Uint32(h[12:])
	if length < headerSize || int64(length) > sector {
		return nil, nil
	}
	sum := le.Uint32(h[16:])
	copied := append([]byte(nil), h[:length]...)
	clear(copied[16:20])
	if crc32.ChecksumIEEE(copied) != sum || int64(le.Uint64(h[24:])) != at/sector {
		return nil, nil // the backup may be better
	}
	entries, count, each := le.Uint64(h[72:]), le.Uint32(h[80:]), le.Uint32(h[84:])
	if count > maxEntries || each < entrySize || each > maxEntrySize || each%8 != 0 || entries > uint64(size/sector) {
		return nil, fmt.Errorf("%d entries of %d bytes at sector %d: %w", count, each, entries, ErrCorrupt)
	}
	table := readAt(r, int64(entries)*sector, int(count*each))
	if table == nil || crc32.ChecksumIEEE(table) != le.Uint32(h[88:]) {
		return nil, nil
	}
	disk := &Disk{Table: TableGPT, ID: guid(h[56:]), SectorSize: sector}
	for i := range int(count) {
		e := table[i*int(each):][:each]
		typ := guid(e)
		if typ == (GUID{}) {
			continue
		}
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if first > last || last >= uint64(size/sector) {
			return nil, fmt.Errorf("partition %d (sectors %d to %d) is not within the image of %d: %w", i+1, first, last, size/sector, ErrCorrupt)
		}
		disk.Partitions = append(disk.Partitions, Partition{
			Number: i + 1, Offset: int64(first) * sector, Size: int64(last-first+1) * sector,
			Type: typ, ID: guid(e[16:]), Flags: le.Uint64(e[48:]), Label: label(e[56:128]),
		})
	}
	return disk, nil
}

// guid turns the mixed byte order of disks into that of the text.
func guid(b []byte) GUID {
	return GUID{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]}
}

func label(b []byte) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

func readMBR(r io.ReaderAt, size int64) (*Disk, error) {
	const sector = 512
	b := readAt(r, 0, sector)
	if b == nil || b[510] != 0x55 || b[511] != 0xaa {
		return nil, nil
	}
	disk := &Disk{Table: TableMBR, SectorSize: sector}
	for i := range 4 {
		e := b[446+16*i:][:16]
		if e[4] == 0 {
			continue
		}
		if e[4] == gptProtective {
			return nil, fmt.Errorf("GPT of the image is damaged, or missing: %w", ErrCorrupt)
		}
		first, n := int64(binary.LittleEndian.Uint32(e[8:])), int64(binary.LittleEndian.Uint32(e[12:]))
		if n == 0 || first == 0 || (first+n)*sector > size {
			return nil, fmt.Errorf("partition %d (%d sectors at %d) is not within the image: %w", i+1, n, first, ErrCorrupt)
		}
		disk.Partitions = append(disk.Partitions, Partition{
			Number: i + 1, Offset: first * sector, Size: n * sector, MBRType: e[4], Bootable: e[0]&0x80 != 0,
		})
	}
	if len(disk.Partitions) == 0 {
		return nil, nil
	}
	return disk, nil
}
