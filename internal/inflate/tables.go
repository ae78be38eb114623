package inflate

import "math/bits"

// Sizes of RFC 1951, and of the tables: the largest number of entries that a
// complete code of at most 15 bits needs with a first level of litBits or distBits.
const (
	maxLitCodes   = 288
	maxDistCodes  = 32
	maxBits       = 15
	litBits       = 11
	distBits      = 8
	litTableSize  = 2342
	distTableSize = 402
)

// An entry of a table holds, from its lowest bit: 6 bits, how many bits of input
// it consumes; in bits 8 to 11 how many of them are the code, the rest being extra
// bits; flags; from bit 16 the literal, or the least length or distance. An entry
// that leads to a second table has that table's start there, and in bits 8 to 11
// how many bits select in it. Zero with isSpecial is a code that nobody defined.
const (
	isLiteral = 1 << 31
	isSpecial = 1 << 15
	isEnd     = 1 << 14
	undefined = isSpecial
)

// litEntries and distEntries are the entries of the symbols without their codes.
var (
	litEntries  = makeLitEntries()
	distEntries = makeDistEntries()
)

// withExtra is an entry for a least value and its number of extra bits.
func withExtra(base int, extra int) uint32 { return uint32(base)<<16 | uint32(extra) }

func makeLitEntries() (e [maxLitCodes]uint32) {
	for i := range 256 {
		e[i] = isLiteral | uint32(i)<<16
	}
	e[256] = isSpecial | isEnd
	base := 3
	for i := range 28 { // RFC 1951, 3.2.5
		extra := max(i/4-1, 0)
		e[257+i] = withExtra(base, extra)
		base += 1 << extra
	}
	e[285] = withExtra(258, 0)
	e[286], e[287] = undefined, undefined
	return e
}

func makeDistEntries() (e [maxDistCodes]uint32) {
	base := 1
	for i := range 30 {
		extra := max(i/2-1, 0)
		e[i] = withExtra(base, extra)
		base += 1 << extra
	}
	e[30], e[31] = undefined, undefined
	return e
}

// build fills a table for the canonical code with these lengths. It refuses codes
// that have more words than bits allow, and fewer unless there is only one word of
// one bit or, where none is given, no word at all.
func (z *Reader) build(table []uint32, first uint, lens []uint8, symbols []uint32) error {
	var count, next [maxBits + 2]int
	for _, n := range lens {
		count[n]++
	}
	count[0] = 0
	left, longestCode := 1, uint(0)
	for n := 1; n <= maxBits; n++ {
		left = left<<1 - count[n]
		if left < 0 {
			return formatError("a code with too many words")
		}
		if count[n] > 0 {
			longestCode = uint(n)
		}
		next[n+1] = next[n] + count[n]
	}
	if left > 0 && longestCode > 1 {
		return formatError("a code with too few words")
	}
	if left > 0 {
		for i := range table[:1<<first] {
			table[i] = undefined
		}
	}
	for s, n := range lens {
		if n > 0 {
			z.sorted[next[n]] = uint16(s)
			next[n]++
		}
	}
	code := uint32(0) // counts up, most significant bit first
	free := 1 << first
	prefix, sub, subBits := ^uint32(0), 0, uint(0)
	done := 0
	for n := uint(1); n <= longestCode; n++ {
		for i := range count[n] {
			symbol := symbols[z.sorted[done]]
			done++
			reversed := bits.Reverse32(code) >> (32 - n)
			code++
			if n <= first {
				entry := symbol + uint32(n)<<8 + uint32(n)
				if symbol == undefined {
					entry = undefined
				}
				for i := int(reversed); i < 1<<first; i += 1 << n {
					table[i] = entry
				}
				continue
			}
			if p := reversed & (1<<first - 1); p != prefix {
				// A new second table: as large as the words with this start need.
				prefix, sub, subBits = p, free, n-first
				for used := count[n] - i; used < 1<<subBits && first+subBits < maxBits; {
					subBits++
					used = used<<1 + count[first+subBits]
				}
				free += 1 << subBits
				if free > len(table) {
					return formatError("a code with too many words")
				}
				table[p] = isSpecial | uint32(sub)<<16 | uint32(subBits)<<8 | uint32(first)
			}
			entry := symbol + uint32(n-first)<<8 + uint32(n-first)
			if symbol == undefined {
				entry = undefined
			}
			for i := int(reversed >> first); i < 1<<subBits; i += 1 << (n - first) {
				table[sub+i] = entry
			}
		}
		code <<= 1
	}
	return nil
}

// fixed sets the tables for a block with the fixed codes (RFC 1951, 3.2.6).
func (z *Reader) fixed() error {
	var lens [maxLitCodes]uint8
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		default:
			lens[i] = 8
		}
	}
	if err := z.build(z.lit[:], litBits, lens[:], litEntries[:]); err != nil {
		return err
	}
	var dist [maxDistCodes]uint8
	for i := range dist {
		dist[i] = 5
	}
	z.litIsFixed = true
	return z.build(z.dist[:], distBits, dist[:], distEntries[:])
}

// codeOrder is the order of the lengths of the code for lengths.
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

var plainEntries = func() (e [19]uint32) {
	for i := range e {
		e[i] = uint32(i) << 16
	}
	return e
}()

// dynamic reads the codes of a block (RFC 1951, 3.2.7) into the tables.
func (z *Reader) dynamic() error {
	z.litIsFixed = false
	head, err := z.take(14)
	if err != nil {
		return err
	}
	nlit, ndist, ncode := int(head&31)+257, int(head>>5&31)+1, int(head>>10)+4
	if nlit > 286 || ndist > 30 {
		return formatError("a code with too many words")
	}
	clear(z.codeLengths[:])
	for i := range ncode {
		n, err := z.take(3)
		if err != nil {
			return err
		}
		z.codeLengths[codeOrder[i]] = uint8(n)
	}
	// The table of distances is free for the code for lengths: 7 bits at most.
	if err := z.build(z.dist[:], 7, z.codeLengths[:], plainEntries[:]); err != nil {
		return err
	}
	for i := 0; i < nlit+ndist; {
		if err := z.need(7 + 7); err != nil {
			return err
		}
		e := z.dist[z.bits&127]
		if e&isSpecial != 0 {
			return formatError("a code that was not defined")
		}
		z.bits >>= e & 63
		z.nbits -= uint(e & 63)
		symbol := e >> 16
		if symbol < 16 {
			z.lens[i] = uint8(symbol)
			i++
			continue
		}
		var value uint8
		var repeat int
		var extra uint
		switch symbol {
		case 16:
			if i == 0 {
				return formatError("a length that repeats nothing")
			}
			value, repeat, extra = z.lens[i-1], 3, 2
		case 17:
			repeat, extra = 3, 3
		default:
			repeat, extra = 11, 7
		}
		repeat += int(z.bits & (1<<extra - 1))
		z.bits >>= extra
		z.nbits -= extra
		if i+repeat > nlit+ndist {
			return formatError("a code with too many words")
		}
		for range repeat {
			z.lens[i] = value
			i++
		}
	}
	if z.lens[256] == 0 {
		return formatError("a block without an end")
	}
	if err := z.build(z.lit[:], litBits, z.lens[:nlit], litEntries[:]); err != nil {
		return err
	}
	return z.build(z.dist[:], distBits, z.lens[nlit:nlit+ndist], distEntries[:])
}
