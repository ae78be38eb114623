package transfer

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
)

const qcow2Magic = 0x514649fb

// Bits of the tables of qcow2 (QEMU, docs/interop/qcow2.txt).
const (
	qcow2OffsetMask = 0x00fffffffffffe00
	qcow2Compressed = 1 << 62
	qcow2ZeroFlag   = 1
)

// maxDisk bounds the disk that a qcow2 file may claim to hold, in bytes.
const maxDisk = 64 << 40

// smallestPacked is less than what any compressed cluster takes, in bytes.
const smallestPacked = 8

var errReused = fmt.Errorf("%w: qcow2 image: its tables refer to more than the file holds", ErrArchive)

type qcow2 struct {
	r           io.ReaderAt
	size        int64
	clusterBits uint32
	l1          []byte
	zstd        bool
}

// isQcow2 says whether a file is in the qcow2 format, of whatever version.
func isQcow2(r io.ReaderAt) bool {
	var head [4]byte
	_, err := r.ReadAt(head[:], 0)
	return err == nil && binary.BigEndian.Uint32(head[:]) == qcow2Magic
}

func openQcow2(r io.ReaderAt) (*qcow2, error) {
	bad := func(rule string) error { return fmt.Errorf("%w: qcow2 image: %s", ErrArchive, rule) }
	head := make([]byte, 112)
	if n, err := r.ReadAt(head, 0); n < 72 {
		return nil, bad(fmt.Sprintf("header cannot be read: %v", err))
	}
	be := binary.BigEndian
	version := be.Uint32(head[4:])
	q := &qcow2{r: r, size: int64(be.Uint64(head[24:])), clusterBits: be.Uint32(head[20:])}
	switch {
	case be.Uint32(head) != qcow2Magic || version < 2 || version > 3:
		return nil, bad(fmt.Sprintf("unknown version %d", version))
	case be.Uint64(head[8:]) != 0:
		return nil, bad("it needs a backing file")
	case be.Uint32(head[32:]) != 0:
		return nil, bad("it is encrypted")
	case q.clusterBits < 9 || q.clusterBits > 21:
		return nil, bad("cluster size is out of range")
	case q.size < 0 || q.size > maxDisk:
		return nil, bad("disk size is out of range")
	}
	if version == 3 {
		incompatible := be.Uint64(head[72:])
		// Bit 0 dirty, bit 1 corrupt, bit 2 external data, bit 3 compression type, bit 4 extended L2.
		if incompatible&^uint64(1|8) != 0 {
			return nil, bad("it needs features that are not supported")
		}
		if incompatible&8 != 0 {
			if head[104] > 1 {
				return nil, bad("unknown compression")
			}
			q.zstd = head[104] == 1
		}
	}
	entries := int64(be.Uint32(head[36:]))
	perL1 := int64(1) << (2*q.clusterBits - 3)
	if need := (q.size + perL1 - 1) / perL1; entries < need || entries > 32<<20/8 {
		return nil, bad("first table has a wrong size")
	}
	q.l1 = make([]byte, entries*8)
	if _, err := r.ReadAt(q.l1, int64(be.Uint64(head[40:]))); err != nil {
		return nil, bad("first table cannot be read")
	}
	return q, nil
}

// unpackQcow2 writes the disk in a qcow2 file of fileSize bytes to dst, an empty file,
// with holes.
//
// Each cluster of the file is used once, so that tables which refer to themselves, or
// all to the same clusters, end before they have filled the disk.
func unpackQcow2(ctx context.Context, src io.ReaderAt, fileSize int64, dst *os.File) error {
	q, err := openQcow2(src)
	if err != nil {
		return err
	}
	cluster := int64(1) << q.clusterBits
	l2 := make([]byte, cluster)
	buf := make([]byte, cluster)
	be := binary.BigEndian
	clusters := fileSize/cluster + 1 // left to be referred to
	packed := fileSize/smallestPacked + 1
	for index := int64(0); index*8 < int64(len(q.l1)); index++ {
		start := index * (cluster / 8) * cluster
		if start >= q.size {
			break
		}
		offset := int64(be.Uint64(q.l1[index*8:]) & qcow2OffsetMask)
		if offset == 0 {
			continue
		}
		if clusters--; clusters < 0 {
			return errReused
		}
		if _, err := src.ReadAt(l2, offset); err != nil {
			return fmt.Errorf("%w: qcow2 image: second table %d cannot be read", ErrArchive, index)
		}
		for i := int64(0); i < cluster/8; i++ {
			at := start + i*cluster
			if at >= q.size {
				break
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			entry := be.Uint64(l2[i*8:])
			switch {
			case entry&qcow2Compressed != 0:
				packed--
			case entry&qcow2OffsetMask != 0:
				clusters--
			}
			if clusters < 0 || packed < 0 {
				return errReused
			}
			ok, err := q.cluster(entry, buf)
			if err != nil {
				return fmt.Errorf("%w: qcow2 image: data at %d cannot be read", ErrArchive, at)
			}
			if ok {
				data := buf[:min(cluster, q.size-at)]
				w := &sparseWriter{f: dst, off: at}
				if _, err := w.Write(data); err != nil {
					return unwritten(err)
				}
			}
		}
	}
	if err := dst.Truncate(q.size); err != nil {
		return unwritten(err)
	}
	return nil
}

// cluster reads one cluster into buf; false means that it is all zero.
func (q *qcow2) cluster(entry uint64, buf []byte) (bool, error) {
	if entry&qcow2Compressed == 0 {
		offset := int64(entry & qcow2OffsetMask)
		if offset == 0 || entry&qcow2ZeroFlag != 0 {
			return false, nil
		}
		n, err := q.r.ReadAt(buf, offset)
		if n > 0 && err == io.EOF {
			clear(buf[n:])
			err = nil
		}
		return true, err
	}
	// A compressed cluster: offset in the low bits, then how many sectors follow
	// the first one.
	bits := 62 - (q.clusterBits - 8)
	offset := int64(entry & (1<<bits - 1))
	sectors := int64(entry&(qcow2Compressed-1))>>bits + 1
	length := sectors*512 - offset%512
	packed := make([]byte, min(length, 2*int64(len(buf))+512))
	n, err := q.r.ReadAt(packed, offset)
	if n == 0 {
		return false, err
	}
	var unpacked io.Reader
	if q.zstd {
		d, err := zstd.NewReader(bytes.NewReader(packed[:n]), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
		if err != nil {
			return false, err
		}
		defer d.Close()
		unpacked = d
	} else {
		unpacked = flate.NewReader(bytes.NewReader(packed[:n]))
	}
	_, err = io.ReadFull(unpacked, buf)
	return true, err
}
