package luks

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// LUKS2 has two copies of a binary header of 4 KiB with a JSON area behind it. The
// second copy is where the first says, or at one of these offsets.
const (
	header2Size = 4096
	maxJSON     = 4 << 20
	magic2      = "SKUL\xba\xbe"
)

var secondCopies = [...]int64{0x4000, 0x8000, 0x10000, 0x20000, 0x40000, 0x80000, 0x100000, 0x200000, 0x400000}

// copy2 is one copy of the header whose checksum is right.
type copy2 struct {
	sequence    uint64
	label, uuid string
	areasFrom   int64 // where key material may be: behind both copies
	json        []byte
}

func read2(r io.ReaderAt, size int64) (*Header, error) {
	best, err := readCopy(r, size, 0, Magic)
	for _, at := range secondCopies {
		second, secondErr := readCopy(r, size, at, magic2)
		if secondErr == nil && (best == nil || second.sequence > best.sequence) {
			best = second
		}
		if best != nil && secondErr == nil {
			break
		}
	}
	if best == nil {
		return nil, err
	}
	h, err := best.parse(size)
	if err != nil {
		return nil, fmt.Errorf("LUKS2 header: %w", err)
	}
	return h, nil
}

func readCopy(r io.ReaderAt, size, at int64, magic string) (*copy2, error) {
	if at > size-header2Size {
		return nil, fmt.Errorf("no room for a header: %w", ErrCorrupt)
	}
	b := make([]byte, header2Size)
	if _, err := r.ReadAt(b, at); err != nil {
		return nil, fmt.Errorf("read LUKS2 header: %w", err)
	}
	be := binary.BigEndian
	if string(b[:6]) != magic || be.Uint16(b[6:]) != 2 {
		return nil, fmt.Errorf("no LUKS header of version 1 or 2 at %d: %w", at, ErrCorrupt)
	}
	length := be.Uint64(b[8:])
	if length <= header2Size || length > maxJSON || int64(length) > size-at || be.Uint64(b[256:]) != uint64(at) {
		return nil, fmt.Errorf("LUKS2 header of %d bytes at %d: %w", length, at, ErrCorrupt)
	}
	area := make([]byte, length-header2Size)
	if _, err := r.ReadAt(area, at+header2Size); err != nil {
		return nil, fmt.Errorf("read LUKS2 header: %w", err)
	}
	hash, err := newHash(text(b[72:104]))
	if err != nil {
		return nil, err
	}
	sum := bytes.Clone(b[448:512])
	clear(b[448:512])
	d := hash()
	d.Write(b)
	d.Write(area)
	if !bytes.HasPrefix(sum, d.Sum(nil)) {
		return nil, fmt.Errorf("checksum of LUKS2 header at %d: %w", at, ErrCorrupt)
	}
	data, _, _ := bytes.Cut(area, []byte{0})
	return &copy2{
		sequence: be.Uint64(b[16:]), label: text(b[24:72]), uuid: text(b[168:208]),
		areasFrom: 2 * int64(length), json: data,
	}, nil
}

// decimal is a 64 bit number, which LUKS2 has as a string.
type decimal uint64

func (d *decimal) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	n, err := strconv.ParseUint(s, 10, 63)
	*d = decimal(n)
	return err
}

// metadata is what is read of the JSON area.
type metadata struct {
	Keyslots map[string]struct {
		Type     string
		KeySize  int `json:"key_size"`
		Priority *int
		Area     struct {
			Type, Encryption string
			Offset, Size     decimal
			KeySize          int `json:"key_size"`
		}
		KDF kdfJSON
		AF  struct {
			Type, Hash string
			Stripes    int
		}
	}
	Segments map[string]struct {
		Type       string
		Offset     decimal
		Size       string
		IVTweak    decimal `json:"iv_tweak"`
		Encryption string
		SectorSize int `json:"sector_size"`
		Integrity  json.RawMessage
		Flags      []string
	}
	Digests map[string]struct {
		kdfJSON
		Keyslots, Segments []string
		Digest             []byte
	}
	Config struct {
		Flags        []string
		Requirements json.RawMessage
	}
}

// kdfJSON is a way to make a key of a passphrase.
type kdfJSON struct {
	Type, Hash         string
	Salt               []byte
	Iterations         uint64
	Time, Memory, CPUs uint64
}

func (k kdfJSON) kdf() kdf {
	return kdf{name: k.Type, hash: k.Hash, salt: k.Salt, iterations: k.Iterations, time: k.Time, memoryKiB: k.Memory, threads: k.CPUs}
}

// flagOption is the option of dm-crypt that a flag of a header asks for.
func flagOption(flag string) (string, bool) {
	switch flag {
	case "allow-discards", "same-cpu-crypt", "submit-from-crypt-cpus", "no-read-workqueue", "no-write-workqueue":
		return strings.ReplaceAll(flag, "-", "_"), true
	}
	return "", false
}

func (c *copy2) parse(size int64) (*Header, error) {
	var m metadata
	if err := json.Unmarshal(c.json, &m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	var requirements struct{ Mandatory []string }
	_ = json.Unmarshal(m.Config.Requirements, &requirements) // absent, or an object
	if len(requirements.Mandatory) > 0 {
		return nil, fmt.Errorf("requirement %.40q: %w", requirements.Mandatory[0], ErrUnsupported)
	}
	h := &Header{Version: 2, UUID: c.uuid, Label: c.label}
	segment, err := h.segment(&m, size)
	if err != nil {
		return nil, err
	}
	for _, flag := range m.Config.Flags {
		if option, ok := flagOption(flag); ok {
			h.data.Options = append(h.data.Options, option)
		}
	}
	var skipped error
	for name := range m.Keyslots {
		s, err := c.slot(&m, name, segment, size)
		if errors.Is(err, ErrCorrupt) {
			return nil, err
		}
		if err != nil {
			skipped = errors.Join(skipped, err)
		} else if s != nil {
			h.slots = append(h.slots, *s)
		}
	}
	if len(h.slots) == 0 && skipped != nil {
		return nil, skipped
	}
	slices.SortFunc(h.slots, func(a, b slot) int {
		return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
	})
	return h, nil
}

// segment finds the one piece of encrypted data, and returns its name.
func (h *Header) segment(m *metadata, size int64) (string, error) {
	if len(m.Segments) != 1 {
		return "", fmt.Errorf("%d segments, as while it is encrypted anew: %w", len(m.Segments), ErrUnsupported)
	}
	for name, s := range m.Segments {
		switch {
		case s.Type != "crypt":
			return "", fmt.Errorf("segment of type %.40q: %w", s.Type, ErrUnsupported)
		case len(s.Integrity) > 0:
			return "", fmt.Errorf("data with integrity tags: %w", ErrUnsupported)
		}
		h.data = Volume{
			Version: 2, UUID: h.UUID, Cipher: s.Encryption, Offset: int64(s.Offset), IVTweak: uint64(s.IVTweak), SectorSize: s.SectorSize,
		}
		if s.Size != "dynamic" {
			n, err := strconv.ParseInt(s.Size, 10, 64)
			if err != nil || n <= 0 {
				return "", fmt.Errorf("segment of %.40q bytes: %w", s.Size, ErrCorrupt)
			}
			h.data.Size = n
		}
		return name, h.data.fits(size)
	}
	panic("unreachable")
}

// slot reads one key slot, nil for those that are not to be tried.
func (c *copy2) slot(m *metadata, name, segment string, size int64) (*slot, error) {
	j := m.Keyslots[name]
	s := &slot{
		name: name, priority: 1, keySize: j.KeySize, offset: int64(j.Area.Offset), cipher: j.Area.Encryption,
		areaKeySize: j.Area.KeySize, kdf: j.KDF.kdf(), stripes: j.AF.Stripes, stripesHash: j.AF.Hash,
	}
	if j.Priority != nil {
		s.priority = *j.Priority
	}
	if s.priority <= 0 {
		return nil, nil
	}
	if j.Type != "luks2" || j.Area.Type != "raw" || j.AF.Type != "luks1" {
		return nil, fmt.Errorf("key slot %.10s of type %.40q: %w", name, j.Type, ErrUnsupported)
	}
	found := false
	for _, d := range m.Digests {
		if slices.Contains(d.Keyslots, name) && slices.Contains(d.Segments, segment) {
			s.digest, found = digest{kdf: d.kdf(), value: d.Digest}, true
		}
	}
	if !found {
		return nil, nil // the key of something else
	}
	if s.keySize > 0 && s.keySize <= maxKey && s.stripes > 0 && s.stripes <= maxStripes {
		s.size = roundUp(int64(s.keySize * s.stripes))
	}
	if s.size > int64(j.Area.Size) || s.offset < c.areasFrom {
		return nil, fmt.Errorf("key slot %.10s: area of %d bytes at %d: %w", name, j.Area.Size, s.offset, ErrCorrupt)
	}
	if err := s.check(size); err != nil {
		return nil, err
	}
	if s.digest.kdf.name != "pbkdf2" {
		return nil, fmt.Errorf("digest of type %.40q: %w", s.digest.kdf.name, ErrUnsupported)
	}
	return s, errors.Join(s.kdf.check(), s.digest.kdf.check())
}
