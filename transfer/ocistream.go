package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
)

// digester hashes and counts what is read through it, or written to it.
type digester struct {
	r   io.Reader
	sum hash.Hash
	n   int64
}

func newDigester(r io.Reader) *digester { return &digester{r: r, sum: sha256.New()} }

func (d *digester) Read(b []byte) (int, error) {
	n, err := d.r.Read(b)
	_, _ = d.sum.Write(b[:n])
	d.n += int64(n)
	return n, err
}

// Write is for io.Writer.
func (d *digester) Write(b []byte) (int, error) {
	d.n += int64(len(b))
	return d.sum.Write(b)
}

func (d *digester) digest() string { return "sha256:" + hex.EncodeToString(d.sum.Sum(nil)) }

// What a stream may grow to when it is unpacked: bombFree bytes in any case, and
// bombRatio times what it was.
const (
	bombFree  = 1 << 30
	bombRatio = 200
)

// bound ends a stream that is next to nothing blown up; packed tells how many bytes
// of it have been read.
func bound(r io.Reader, packed func() int64) io.Reader { return &bounded{r: r, packed: packed} }

type bounded struct {
	r      io.Reader
	packed func() int64
	n      int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.n += int64(n); b.n > bombFree && b.n > bombRatio*b.packed() {
		return n, fmt.Errorf("%w: it unpacks to more than %d times its size", ErrArchive, bombRatio)
	}
	return n, err
}

// contextReader ends reading when its context does.
type contextReader struct {
	ctx context.Context //nolint:containedctx // lives as long as one copy
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
