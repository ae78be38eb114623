package inflate

import "encoding/binary"

// run decodes as long as a load of the input and the longest match fit. It says
// whether the block has ended.
func (z *Reader) run() (done bool, err error) {
	var (
		in      = z.in[:z.end]
		out     = &z.out
		lit     = &z.lit
		dist    = &z.dist
		pos     = z.pos
		made    = z.made
		first   = z.first
		bits    = z.bits
		nbits   = z.nbits
		lastIn  = z.end - lookAhead
		lastOut = window + chunk
	)
	for pos <= lastIn && made < lastOut {
		bits |= binary.LittleEndian.Uint64(in[pos:]) << (nbits & 63)
		pos += int((63 - nbits) >> 3)
		nbits |= 56
		e := lit[bits&(1<<litBits-1)]
		if e&isLiteral != 0 {
			// Three literals take 45 of the 56 bits at most.
			bits >>= e & 63
			nbits -= uint(e & 63)
			out[made] = byte(e >> 16)
			made++
			e = lit[bits&(1<<litBits-1)]
			if e&isLiteral != 0 {
				bits >>= e & 63
				nbits -= uint(e & 63)
				out[made] = byte(e >> 16)
				made++
				e = lit[bits&(1<<litBits-1)]
				if e&isLiteral != 0 {
					bits >>= e & 63
					nbits -= uint(e & 63)
					out[made] = byte(e >> 16)
					made++
					continue
				}
			}
			if pos > lastIn {
				continue // the same symbol again, after more input
			}
			bits |= binary.LittleEndian.Uint64(in[pos:]) << (nbits & 63)
			pos += int((63 - nbits) >> 3)
			nbits |= 56
		}
		if e&isSpecial != 0 {
			if e&isEnd != 0 {
				bits >>= e & 63
				nbits -= uint(e & 63)
				done = true
				break
			}
			if e&63 == 0 {
				err = formatError("a code that was not defined")
				break
			}
			bits >>= e & 63
			nbits -= uint(e & 63)
			e = lit[(uint(e>>16)+uint(bits&(1<<(e>>8&15)-1)))%litTableSize]
			if e&isLiteral != 0 {
				bits >>= e & 63
				nbits -= uint(e & 63)
				out[made] = byte(e >> 16)
				made++
				continue
			}
			if e&isSpecial != 0 {
				if e&isEnd == 0 {
					err = formatError("a code that was not defined")
					break
				}
				bits >>= e & 63
				nbits -= uint(e & 63)
				done = true
				break
			}
		}
		// A length: code and extra bits are 20 of 56 at most; 33 more for a distance
		// do not always fit, hence the load below.
		length := int(e>>16) + int(bits&(1<<(e&63)-1)>>(e>>8&15))
		bits >>= e & 63
		nbits -= uint(e & 63)
		e = dist[bits&(1<<distBits-1)]
		if e&isSpecial != 0 {
			if e&63 == 0 {
				err = formatError("a code that was not defined")
				break
			}
			bits >>= e & 63
			nbits -= uint(e & 63)
			e = dist[(uint(e>>16)+uint(bits&(1<<(e>>8&15)-1)))%distTableSize]
			if e&isSpecial != 0 {
				err = formatError("a code that was not defined")
				break
			}
		}
		back := int(e>>16) + int(bits&(1<<(e&63)-1)>>(e>>8&15))
		bits >>= e & 63
		nbits -= uint(e & 63)
		if back > made-first || back > window {
			err = formatError("a match that reaches behind the start")
			break
		}
		from := made - back
		end := made + length
		switch {
		case back >= 8:
			// Most are shorter than this, and a branch for each word is one too many.
			binary.LittleEndian.PutUint64(out[made:made+8], binary.LittleEndian.Uint64(out[from:from+8]))
			binary.LittleEndian.PutUint64(out[made+8:made+16], binary.LittleEndian.Uint64(out[from+8:from+16]))
			for made, from = made+16, from+16; made < end; made, from = made+8, from+8 {
				binary.LittleEndian.PutUint64(out[made:made+8], binary.LittleEndian.Uint64(out[from:from+8]))
			}
		case back == 1:
			v := uint64(out[from]) * 0x0101010101010101
			for ; made < end; made += 8 {
				binary.LittleEndian.PutUint64(out[made:made+8], v)
			}
		default:
			for ; made < end; made++ {
				out[made] = out[from]
				from++
			}
		}
		made = end
	}
	z.pos, z.made, z.bits, z.nbits = pos, made, bits, nbits
	return done, err
}
