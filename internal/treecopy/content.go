package treecopy

import (
	"context"
	"errors"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// copyChunk bounds one copy call, so that cancelling takes effect soon.
const copyChunk = 16 << 20

// Content copies the first size bytes of src to dst, which must be empty, and
// keeps holes. progress may be nil.
func Content(ctx context.Context, src, dst *os.File, size int64, progress func(int64)) error {
	err := contentFD(ctx, int(src.Fd()), int(dst.Fd()), size, nil, progress)
	runtime.KeepAlive(src)
	runtime.KeepAlive(dst)
	return err
}

// contentFD is Content; buf is what it copies by where the kernel does not, nil for one of its own.
func contentFD(ctx context.Context, in, out int, size int64, buf []byte, progress func(int64)) error {
	inKernel := true
	for off := int64(0); off < size; {
		data, err := unix.Seek(in, off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO):
			data = size
		case err != nil:
			data = off
		}
		if data >= size {
			break
		}
		end, err := unix.Seek(in, data, unix.SEEK_HOLE)
		if err != nil || end > size || end <= data {
			end = size
		}
		for data < end {
			if err := ctx.Err(); err != nil {
				return err
			}
			want := int(min(end-data, copyChunk))
			n := 0
			if inKernel {
				rOff, wOff := data, data
				n, err = unix.CopyFileRange(in, &rOff, out, &wOff, want, 0)
				if err != nil {
					if errors.Is(err, unix.EINTR) {
						continue
					}
					if !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
						return err
					}
					inKernel = false
					continue
				}
			} else {
				if buf == nil {
					buf = make([]byte, 1<<20)
				}
				if n, err = pread(in, buf[:min(want, len(buf))], data); err != nil {
					return err
				}
				if err := pwriteAll(out, buf[:n], data); err != nil {
					return err
				}
			}
			if n == 0 { // the file shrank meanwhile
				return unix.Ftruncate(out, size)
			}
			data += int64(n)
			if progress != nil {
				progress(int64(n))
			}
		}
		off = data
	}
	return unix.Ftruncate(out, size)
}

func pread(fd int, buf []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(fd, buf, off)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func pwriteAll(fd int, buf []byte, off int64) error {
	for len(buf) > 0 {
		n, err := unix.Pwrite(fd, buf, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		buf, off = buf[n:], off+int64(n)
	}
	return nil
}
