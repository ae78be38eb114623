// Package luks reads the headers of encrypted volumes, LUKS1 and LUKS2, and opens
// them with a passphrase (the LUKS On-Disk Format Specifications of cryptsetup). What
// it returns is what the kernel's dm-crypt needs.
//
// A header is hostile input: every length, offset and cost is bounded before it is
// acted on. It reads only, and makes no device. Volumes with integrity tags, with
// tokens as their only key, or in the middle of a re-encryption are refused.
package luks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Errors that are wrapped.
var (
	ErrCorrupt    = errors.New("broken LUKS header")
	ErrPassphrase = errors.New("no key slot opens with this passphrase")
	// ErrCost is for a key slot that wants more memory or time than a caller grants.
	ErrCost        = errors.New("opening the key slot costs too much")
	ErrUnsupported = errors.New("not supported in a LUKS header")
)

// Magic starts a header.
const Magic = "LUKS\xba\xbe"

const sector = 512

// Header is a checked header.
type Header struct {
	Version     int
	UUID, Label string
	slots       []slot // in the order in which they are to be tried
	data        Volume // without its key
}

// slot is a key slot: the volume key, encrypted with a key that a passphrase gives.
type slot struct {
	name         string
	priority     int
	keySize      int // of the volume key, bytes
	offset, size int64
	cipher       string // of the area
	areaKeySize  int
	kdf          kdf
	stripes      int
	stripesHash  string
	digest       digest
}

// digest tells the right volume key from others.
type digest struct {
	kdf   kdf
	value []byte
}

// Volume is what is encrypted in an image, and how.
type Volume struct {
	Version int
	UUID    string
	Cipher  string // as dm-crypt has it: aes-xts-plain64
	Key     []byte
	Offset  int64 // bytes, from the start of the header's device
	Size    int64 // bytes
	// IVTweak is added to the numbers of sectors.
	IVTweak    uint64
	SectorSize int
	Options    []string // of dm-crypt
}

// Read reads the header of a volume of size bytes.
func Read(r io.ReaderAt, size int64) (*Header, error) {
	b := make([]byte, 8)
	if _, err := r.ReadAt(b, 0); err == nil && string(b[:6]) == Magic && b[6] == 0 && b[7] == 1 {
		return read1(r, size)
	}
	return read2(r, size) // it may be one whose first copy is damaged
}

// Limits is what opening a volume may cost.
type Limits struct {
	MemoryKiB uint64
}

// Unlock finds the key slot that the passphrase opens. It takes as long as the slots
// ask for, a second or two each; when ctx ends before, it goes on in the background.
func (h *Header) Unlock(ctx context.Context, r io.ReaderAt, passphrase []byte, l Limits) (*Volume, error) {
	type result struct {
		v   *Volume
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := h.unlock(ctx, r, passphrase, l)
		done <- result{v, err}
	}()
	select {
	case res := <-done:
		return res.v, res.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (h *Header) unlock(ctx context.Context, r io.ReaderAt, passphrase []byte, l Limits) (*Volume, error) {
	var skipped error
	for _, s := range h.slots {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		key, err := s.open(r, passphrase, l)
		if err != nil {
			// Another slot may be one that can be opened.
			skipped = errors.Join(skipped, fmt.Errorf("key slot %s: %w", s.name, err))
			continue
		}
		if key != nil {
			v := h.data
			v.Key = key
			return &v, nil
		}
	}
	if skipped != nil {
		return nil, skipped
	}
	if len(h.slots) == 0 {
		return nil, fmt.Errorf("volume has no key slot for passphrases: %w", ErrUnsupported)
	}
	return nil, ErrPassphrase
}

// open returns the volume key, nil where the passphrase is another's.
func (s *slot) open(r io.ReaderAt, passphrase []byte, l Limits) ([]byte, error) {
	areaKey, err := s.kdf.derive(passphrase, s.areaKeySize, l)
	if err != nil {
		return nil, err
	}
	defer clear(areaKey)
	split := make([]byte, s.size)
	defer clear(split)
	if _, err := r.ReadAt(split, s.offset); err != nil {
		return nil, fmt.Errorf("read key material: %w", err)
	}
	if err := decryptArea(split, s.cipher, areaKey); err != nil {
		return nil, err
	}
	key, err := merge(split[:s.keySize*s.stripes], s.keySize, s.stripes, s.stripesHash)
	if err != nil {
		return nil, err
	}
	sum, err := s.digest.kdf.derive(key, len(s.digest.value), l)
	if err != nil {
		return nil, err
	}
	if string(sum) != string(s.digest.value) {
		clear(key)
		return nil, nil
	}
	return key, nil
}

// maxKey bounds a key, and maxStripes the pieces that it is split into: both are
// several times what cryptsetup makes.
const (
	maxKey     = 512
	maxStripes = 8192
	maxAreas   = 64 << 20 // where the areas of key slots end at most
)

// check refuses a slot whose numbers make no sense.
func (s *slot) check(size int64) error {
	switch {
	case s.keySize < 1 || s.keySize > maxKey || s.areaKeySize < 1 || s.areaKeySize > maxKey:
		return fmt.Errorf("key slot %s: keys of %d and %d bytes: %w", s.name, s.keySize, s.areaKeySize, ErrCorrupt)
	case s.stripes < 1 || s.stripes > maxStripes:
		return fmt.Errorf("key slot %s: %d stripes: %w", s.name, s.stripes, ErrCorrupt)
	case s.offset < sector || s.offset > maxAreas || s.size < int64(s.keySize*s.stripes) || s.offset+s.size > size:
		return fmt.Errorf("key slot %s: area of %d bytes at %d: %w", s.name, s.size, s.offset, ErrCorrupt)
	case len(s.digest.value) < 16 || len(s.digest.value) > 64:
		return fmt.Errorf("key slot %s: digest of %d bytes: %w", s.name, len(s.digest.value), ErrCorrupt)
	}
	return nil
}

// maxCipher bounds a cipher's name, in bytes.
const maxCipher = 100

// validCipher tells whether s is made of what dm-crypt's cipher specifications are
// made of. No blank may get into a table.
func validCipher(s string) bool {
	return s != "" && len(s) <= maxCipher && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune(":_().,-", c)
	})
}

// fits checks where the data is; end is what a size that isn't set stands for.
func (v *Volume) fits(end int64) error {
	switch {
	case !validCipher(v.Cipher):
		return fmt.Errorf("cipher %.100q: %w", v.Cipher, ErrCorrupt)
	case v.SectorSize < sector || v.SectorSize > 4096 || v.SectorSize&(v.SectorSize-1) != 0:
		return fmt.Errorf("sectors of %d bytes: %w", v.SectorSize, ErrCorrupt)
	case v.Offset < 0 || v.Offset%sector != 0 || v.Offset >= end:
		return fmt.Errorf("data at %d: %w", v.Offset, ErrCorrupt)
	}
	if v.Size == 0 {
		v.Size = end - v.Offset
		v.Size -= v.Size % int64(v.SectorSize)
	}
	if v.Size <= 0 || v.Size%int64(v.SectorSize) != 0 || v.Size > end-v.Offset {
		return fmt.Errorf("%d bytes of data at %d, of %d: %w", v.Size, v.Offset, end, ErrCorrupt)
	}
	return nil
}

// Sectors is the volume's size in units of 512 bytes.
func (v *Volume) Sectors() uint64 { return uint64(v.Size / sector) }

// Table is the parameters of a dm-crypt target. The key is hexadecimal, or the name
// of one in a keyring (":SIZE:TYPE:DESCRIPTION").
func (v *Volume) Table(device, key string) string {
	options := append([]string(nil), v.Options...)
	if v.SectorSize != sector {
		options = append(options, "sector_size:"+strconv.Itoa(v.SectorSize))
	}
	table := fmt.Sprintf("%s %s %d %s %d", v.Cipher, key, v.IVTweak, device, v.Offset/sector)
	if len(options) > 0 {
		table += fmt.Sprintf(" %d %s", len(options), strings.Join(options, " "))
	}
	return table
}
