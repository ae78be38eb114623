package transfer

import (
	"archive/tar"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// smallFile is the largest file, in bytes, whose content waits in memory until
// another goroutine writes it.
const smallFile = 128 << 10

// fillDepth is how many such files may wait; it bounds memory to 8 MiB.
const fillDepth = 64

// piece is a small file that exists already and lacks its content and attributes.
type piece struct {
	fd           int // closed when it is done
	buf          []byte
	n            int
	header       *tar.Header
	owned, exact bool // of creator.exact
}

// filler completes small files on all processors while the archive is read on.
// Files appear under their names before, so that the order of the archive holds.
type filler struct {
	jobs    chan piece
	free    chan []byte
	written func(bytes int64)
	group   sync.WaitGroup
	failed  atomic.Bool
	once    sync.Once
	err     error
}

func newFiller(written func(bytes int64)) *filler {
	f := &filler{jobs: make(chan piece, fillDepth), free: make(chan []byte, fillDepth), written: written}
	for range fillDepth {
		f.free <- nil
	}
	for range max(2, min(runtime.NumCPU(), 8)) {
		f.group.Go(func() {
			for p := range f.jobs {
				if !f.failed.Load() {
					if err := f.complete(p); err != nil {
						f.once.Do(func() { f.err = fmt.Errorf("unpack %q: %w", shorten(p.header.Name), err) })
						f.failed.Store(true)
					}
				}
				_ = unix.Close(p.fd)
				f.release(p.buf)
			}
		})
	}
	return f
}

// buffer returns one of smallFile bytes; it waits while all are in use.
func (f *filler) buffer() []byte {
	buf := <-f.free
	if buf == nil {
		buf = make([]byte, smallFile)
	}
	return buf
}

func (f *filler) release(buf []byte) { f.free <- buf }

func (f *filler) put(p piece) { f.jobs <- p }

// wait returns when all files are complete, with the first error.
func (f *filler) wait() error {
	close(f.jobs)
	f.group.Wait()
	return f.err
}

func (f *filler) complete(p piece) error {
	if err := writeSparse(p.fd, p.buf[:p.n]); err != nil {
		return err
	}
	if err := setFileAttributes(p.fd, p.header, p.owned, p.exact); err != nil {
		return fmt.Errorf("set attributes: %w", err)
	}
	if f.written != nil {
		f.written(int64(p.n))
	}
	return nil
}

// writeSparse writes the whole content of an empty file and leaves holes where
// blocks are all zero.
func writeSparse(fd int, data []byte) error {
	size := len(data)
	written := 0
	for off := 0; off < size; {
		end := off
		for end < size && !isZero(data[end:min(end+sparseBlock, size)]) {
			end = min(end+sparseBlock, size)
		}
		for off < end {
			n, err := unix.Pwrite(fd, data[off:end], int64(off))
			if err != nil {
				return os.NewSyscallError("write", err)
			}
			off += n
			written = off
		}
		off = min(off+sparseBlock, size)
	}
	if written < size {
		return os.NewSyscallError("ftruncate", unix.Ftruncate(fd, int64(size)))
	}
	return nil
}

func isZero(b []byte) bool {
	return len(b) > 0 && b[0] == 0 && string(b) == string(zeros[:len(b)])
}
