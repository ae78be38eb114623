// Package verity reads what protects a file system by dm-verity: the superblock of
// the hashes (as veritysetup(8) writes it), signatures of root hashes, and where
// both are to be found (Documentation/admin-guide/device-mapper/verity.rst of the
// kernel, the Discoverable Partitions Specification).
//
// All of it is hostile input. It makes no device and checks no block: the kernel does.
package verity

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrCorrupt is wrapped when a superblock or a signature partition makes no sense.
var ErrCorrupt = errors.New("broken Verity data")

const (
	superblockSize = 512
	maxSalt        = 256
)

// Superblock says how the hashes of a file system are made.
type Superblock struct {
	UUID          [16]byte
	hashType      uint32
	algorithm     string
	dataBlockSize uint32
	hashBlockSize uint32
	dataBlocks    uint64
	salt          []byte
}

// validHash tells whether s looks like one of the kernel's hashes. No blank may get
// into a table.
func validHash(s string) bool {
	return s != "" && len(s) < 32 && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '-'
	})
}

// Read reads the superblock at the start of the hashes, and checks it against the
// size of the protected data in bytes.
func Read(r io.ReaderAt, dataSize int64) (*Superblock, error) {
	b := make([]byte, superblockSize)
	if _, err := r.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("read Verity superblock: %w", err)
	}
	le := binary.LittleEndian
	if string(b[:8]) != "verity\x00\x00" || le.Uint32(b[8:]) != 1 {
		return nil, fmt.Errorf("no Verity superblock: %w", ErrCorrupt)
	}
	s := &Superblock{
		UUID: [16]byte(b[16:32]), hashType: le.Uint32(b[12:]), algorithm: text(b[32:64]),
		dataBlockSize: le.Uint32(b[64:]), hashBlockSize: le.Uint32(b[68:]), dataBlocks: le.Uint64(b[72:]),
	}
	salt := le.Uint16(b[80:])
	switch {
	case s.hashType > 1:
		return nil, fmt.Errorf("Verity format %d: %w", s.hashType, ErrCorrupt)
	case !validHash(s.algorithm):
		return nil, fmt.Errorf("hash %q: %w", s.algorithm, ErrCorrupt)
	case !blockSize(s.dataBlockSize) || !blockSize(s.hashBlockSize):
		return nil, fmt.Errorf("blocks of %d and %d bytes: %w", s.dataBlockSize, s.hashBlockSize, ErrCorrupt)
	case salt > maxSalt:
		return nil, fmt.Errorf("salt of %d bytes: %w", salt, ErrCorrupt)
	case s.dataBlocks == 0 || s.dataBlocks > uint64(dataSize)/uint64(s.dataBlockSize):
		return nil, fmt.Errorf("%d blocks of %d bytes in %d bytes: %w", s.dataBlocks, s.dataBlockSize, dataSize, ErrCorrupt)
	}
	s.salt = b[88 : 88+int(salt)]
	return s, nil
}

func blockSize(n uint32) bool { return n >= 512 && n <= 512<<10 && n&(n-1) == 0 }

func text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// Sectors is the size of the protected data in units of 512 bytes.
func (s *Superblock) Sectors() uint64 { return s.dataBlocks * uint64(s.dataBlockSize/512) }

// Table is the parameters of a dm-verity target. The signature is the description of
// a key in a keyring of this process, "" for none.
func (s *Superblock) Table(data, hashes string, root []byte, signature string) string {
	salt := "-"
	if len(s.salt) > 0 {
		salt = hex.EncodeToString(s.salt)
	}
	// The first block of hashes is the one behind the superblock.
	table := fmt.Sprintf("%d %s %s %d %d %d 1 %s %x %s",
		s.hashType, data, hashes, s.dataBlockSize, s.hashBlockSize, s.dataBlocks, s.algorithm, root, salt)
	if signature != "" {
		table += " 2 root_hash_sig_key_desc " + signature
	}
	return table
}
