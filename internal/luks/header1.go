package luks

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
)

// Layout of LUKS1: a header of 592 bytes with 8 key slots.
const (
	header1Size = 592
	slots1      = 8
	slot1Active = 0x00ac71f3
)

func read1(r io.ReaderAt, size int64) (*Header, error) {
	b := make([]byte, header1Size)
	if _, err := r.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("read LUKS1 header: %w", err)
	}
	be := binary.BigEndian
	hash := text(b[72:104])
	h := &Header{Version: 1, UUID: text(b[168:208])}
	h.data = Volume{
		Version: 1, UUID: h.UUID, Cipher: text(b[8:40]) + "-" + text(b[40:72]),
		Offset: int64(be.Uint32(b[104:])) * sector, SectorSize: sector,
	}
	if err := h.data.fits(size); err != nil {
		return nil, err
	}
	keySize := be.Uint32(b[108:])
	if keySize > maxKey {
		return nil, fmt.Errorf("key of %d bytes: %w", keySize, ErrCorrupt)
	}
	sum := digest{
		value: bytes.Clone(b[112:132]),
		kdf:   kdf{name: "pbkdf2", hash: hash, salt: bytes.Clone(b[132:164]), iterations: uint64(be.Uint32(b[164:]))},
	}
	if err := sum.kdf.check(); err != nil {
		return nil, fmt.Errorf("digest: %w", err)
	}
	for n := range slots1 {
		e := b[208+48*n:][:48]
		if be.Uint32(e) != slot1Active {
			continue
		}
		s := slot{
			name: strconv.Itoa(n), keySize: int(keySize), areaKeySize: int(keySize), cipher: h.data.Cipher,
			kdf:    kdf{name: "pbkdf2", hash: hash, salt: bytes.Clone(e[8:40]), iterations: uint64(be.Uint32(e[4:]))},
			offset: int64(be.Uint32(e[40:])) * sector, stripesHash: hash, digest: sum,
		}
		stripes := be.Uint32(e[44:])
		if stripes > maxStripes {
			return nil, fmt.Errorf("key slot %d: %d stripes: %w", n, stripes, ErrCorrupt)
		}
		s.stripes = int(stripes)
		s.size = roundUp(int64(s.keySize * s.stripes))
		if err := s.check(size); err != nil {
			return nil, err
		}
		if err := s.kdf.check(); err != nil {
			return nil, fmt.Errorf("key slot %d: %w", n, err)
		}
		h.slots = append(h.slots, s)
	}
	return h, nil
}

func roundUp(n int64) int64 { return (n + sector - 1) / sector * sector }

// text is a string that ends with a zero byte, or with its room.
func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}
