// Package inflate owns the reading of gzip streams (RFC 1952) at about twice the
// speed of the general libraries: it decodes into one buffer, a whole match or
// three literals for each load of the input. It trusts no byte of the stream. It
// does not compress, and starts no goroutine.
package inflate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// ErrFormat is a stream that breaks RFC 1951 or RFC 1952. A stream that ends too
// early is io.ErrUnexpectedEOF instead.
var ErrFormat = errors.New("not a valid gzip stream")

func formatError(what string) error { return fmt.Errorf("%w: %s", ErrFormat, what) }

const (
	window    = 32 << 10  // how far back a match may reach
	chunk     = 256 << 10 // what is decoded at a time
	longest   = 258       // match
	slack     = longest + 32
	outSize   = window + chunk + slack
	inSize    = 128 << 10
	lookAhead = 8  // bytes that one load takes
	padding   = 32 // zeros after the end of the input, so that the last load is like any
)

type state uint8

const (
	atMember state = iota // a header, or the end
	atBlock
	inStored
	inCodes
	atTrailer
)

// Reader reads the content of a gzip stream of one or more members. Zeros after
// the last are passed over, as by gzip(1).
type Reader struct {
	src io.Reader

	in       [inSize + padding]byte
	pos, end int  // of what has been read and not consumed; end counts the padding
	real     int  // end without the padding
	ended    bool // src has no more
	members  int

	bits  uint64 // the next nbits bits of the input, and perhaps correct ones above
	nbits uint

	out         [outSize]byte
	told, made  int // out[told:made] is for the caller
	first       int // where the member begins in out, or 0 when that is long past
	crc         uint32
	size        uint32
	state       state
	final       bool
	storedLeft  int
	err         error
	lit         [litTableSize]uint32
	dist        [distTableSize]uint32
	lens        [maxLitCodes + maxDistCodes]uint8
	litIsFixed  bool
	sorted      [maxLitCodes]uint16
	codeLengths [19]uint8
}

// NewReader returns a reader of the stream r, and an error when that does not
// start with the header of a member. It reads ahead of what it needs.
func NewReader(r io.Reader) (*Reader, error) {
	z := &Reader{src: r}
	if err := z.member(); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return z, nil
}

// Read is for io.Reader.
func (z *Reader) Read(b []byte) (int, error) {
	for z.told == z.made {
		if z.err != nil {
			return 0, z.err
		}
		z.err = z.decode()
	}
	n := copy(b, z.out[z.told:z.made])
	z.told += n
	return n, nil
}

// decode makes more output, at the least one byte, or returns an error with the
// output before it.
func (z *Reader) decode() error {
	if z.made >= window+chunk {
		// Only what matches can reach stays.
		cut := z.made - window
		copy(z.out[:window], z.out[cut:z.made])
		z.first = max(z.first-cut, 0)
		z.told, z.made = window, window
	}
	start := z.made
	for z.made == start {
		err := z.step()
		z.crc = crc32.Update(z.crc, crc32.IEEETable, z.out[start:z.made])
		z.size += uint32(z.made - start)
		if err != nil {
			return err
		}
	}
	return nil
}

// step goes on with what the stream is at.
func (z *Reader) step() error {
	switch z.state {
	case atMember:
		return z.member()
	case atBlock:
		return z.block()
	case inStored:
		return z.stored()
	case inCodes:
		return z.codes()
	default:
		return z.trailer()
	}
}

// more moves what is left of the input to the front and reads on.
func (z *Reader) more() error {
	if z.ended {
		return io.ErrUnexpectedEOF
	}
	kept := min(z.pos, lookAhead) // align may give them back
	z.end = copy(z.in[:], z.in[z.pos-kept:z.end])
	z.pos = kept
	for empty := 0; ; {
		n, err := z.src.Read(z.in[z.end:inSize])
		z.end += n
		z.real = z.end
		switch {
		case errors.Is(err, io.EOF):
			z.ended = true
			clear(z.in[z.end : z.end+padding])
			z.end += padding
			return nil
		case err != nil:
			return err
		case n > 0:
			return nil
		}
		if empty++; empty > 100 {
			return io.ErrNoProgress
		}
	}
}

// align gives back whole bytes that were loaded, and drops the rest of the last one.
func (z *Reader) align() error {
	z.pos -= int(z.nbits >> 3)
	z.bits, z.nbits = 0, 0
	return z.overrun()
}

// overrun is an error when bits behind the end of the input were used.
func (z *Reader) overrun() error {
	if z.ended && z.pos*8-int(z.nbits) > z.real*8 {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// readByte reads a byte of the input, outside of blocks.
func (z *Reader) readByte() (byte, error) {
	for z.pos >= z.real {
		if z.ended {
			return 0, io.EOF
		}
		if err := z.more(); err != nil {
			return 0, err
		}
	}
	c := z.in[z.pos]
	z.pos++
	return c, nil
}

// readBytes fills b from the input, outside of blocks.
func (z *Reader) readBytes(b []byte) error {
	for i := range b {
		c, err := z.readByte()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		b[i] = c
	}
	return nil
}

// Flags of a member's header (RFC 1952, 2.3.1).
const (
	flagHCRC    = 1 << 1
	flagExtra   = 1 << 2
	flagName    = 1 << 3
	flagComment = 1 << 4
	flagsOther  = 0xe0
)

// member reads the header of a member; io.EOF is the good end of the stream.
func (z *Reader) member() error {
	c, err := z.readByte()
	if err != nil {
		return err
	}
	if c == 0 && z.members > 0 {
		for c == 0 {
			if c, err = z.readByte(); err != nil {
				return err
			}
		}
		return formatError("data follow its end")
	}
	head := [10]byte{c}
	if err := z.readBytes(head[1:2]); err != nil {
		return err
	}
	if head[0] != 0x1f || head[1] != 0x8b {
		if z.members > 0 {
			return formatError("data follow its end")
		}
		return formatError("it has no header")
	}
	if err := z.readBytes(head[2:]); err != nil {
		return err
	}
	flags := head[3]
	if head[2] != 8 || flags&flagsOther != 0 {
		return formatError("unknown method or flags")
	}
	if flags&flagExtra != 0 {
		var size [2]byte
		if err := z.readBytes(size[:]); err != nil {
			return err
		}
		if err := z.readBytes(make([]byte, binary.LittleEndian.Uint16(size[:]))); err != nil {
			return err
		}
	}
	for _, flag := range []byte{flagName, flagComment} {
		for c := byte(1); flags&flag != 0 && c != 0; {
			var one [1]byte
			if err := z.readBytes(one[:]); err != nil {
				return err
			}
			c = one[0]
		}
	}
	if flags&flagHCRC != 0 {
		var sum [2]byte
		if err := z.readBytes(sum[:]); err != nil {
			return err
		}
	}
	z.members++
	z.first, z.crc, z.size, z.final = z.made, 0, 0, false
	z.state = atBlock
	return nil
}

func (z *Reader) trailer() error {
	var tail [8]byte
	if err := z.readBytes(tail[:]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(tail[:]) != z.crc {
		return formatError("checksum error")
	}
	if binary.LittleEndian.Uint32(tail[4:]) != z.size {
		return formatError("its length is wrong")
	}
	z.state = atMember
	return nil
}

// need makes sure that n bits, at most 32, are loaded.
func (z *Reader) need(n uint) error {
	for z.nbits < n {
		if z.pos+lookAhead > z.end {
			if err := z.more(); err != nil {
				return err
			}
			continue
		}
		z.bits |= binary.LittleEndian.Uint64(z.in[z.pos:]) << (z.nbits & 63)
		z.pos += int((63 - z.nbits) >> 3)
		z.nbits |= 56
	}
	return nil
}

// take reads n bits, at most 32.
func (z *Reader) take(n uint) (uint, error) {
	if err := z.need(n); err != nil {
		return 0, err
	}
	v := uint(z.bits & (1<<n - 1))
	z.bits >>= n
	z.nbits -= n
	return v, nil
}

// block reads the start of a block (RFC 1951, 3.2.3).
func (z *Reader) block() error {
	if z.final {
		z.state = atTrailer
		return z.align()
	}
	head, err := z.take(3)
	if err != nil {
		return err
	}
	z.final = head&1 != 0
	switch head >> 1 {
	case 0:
		if err := z.align(); err != nil {
			return err
		}
		var size [4]byte
		if err := z.readBytes(size[:]); err != nil {
			return err
		}
		n := binary.LittleEndian.Uint16(size[:])
		if n != ^binary.LittleEndian.Uint16(size[2:]) {
			return formatError("a stored block has two lengths")
		}
		z.storedLeft, z.state = int(n), inStored
		return nil
	case 1:
		if !z.litIsFixed {
			if err := z.fixed(); err != nil {
				return err
			}
		}
	case 2:
		if err := z.dynamic(); err != nil {
			return err
		}
	default:
		return formatError("a block of unknown type")
	}
	z.state = inCodes
	return nil
}

// stored copies from a block that is not compressed.
func (z *Reader) stored() error {
	for z.storedLeft > 0 {
		if z.pos >= z.real {
			if err := z.more(); err != nil {
				return err
			}
			continue
		}
		room := z.out[z.made : window+chunk]
		if len(room) == 0 {
			return nil
		}
		n := copy(room[:min(len(room), z.storedLeft)], z.in[z.pos:z.real])
		z.made += n
		z.pos += n
		z.storedLeft -= n
	}
	z.state = atBlock
	return nil
}

// codes decodes symbols until the block ends or the buffer is full.
func (z *Reader) codes() error {
	for z.made < window+chunk {
		done, err := z.run()
		if overrun := z.overrun(); overrun != nil {
			return overrun
		}
		if err != nil {
			return err
		}
		if done {
			z.state = atBlock
			return nil
		}
		if z.made >= window+chunk {
			return nil
		}
		if err := z.more(); err != nil {
			return err
		}
	}
	return nil
}
