package transfer

import (
	"bytes"
	"os"
)

// sparseBlock is the smallest run of zeros that becomes a hole, in bytes.
const sparseBlock = 4096

var zeros [sparseBlock]byte

// sparseWriter writes a file from its start and leaves holes where blocks are
// all zero. The file must be empty at first; finish gives it its length.
type sparseWriter struct {
	f   *os.File
	off int64
	end int64 // of the last byte written
}

func (w *sparseWriter) Write(b []byte) (int, error) {
	total := len(b)
	for len(b) > 0 {
		// Runs start at block boundaries of the file.
		n := min(len(b), sparseBlock-int(w.off%sparseBlock))
		hole := bytes.Equal(b[:n], zeros[:n])
		for n < len(b) {
			next := min(len(b)-n, sparseBlock)
			if bytes.Equal(b[n:n+next], zeros[:next]) != hole {
				break
			}
			n += next
		}
		if !hole {
			if _, err := w.f.WriteAt(b[:n], w.off); err != nil {
				return total - len(b), err
			}
			w.end = w.off + int64(n)
		}
		w.off += int64(n)
		b = b[n:]
	}
	return total, nil
}

// finish makes the file as long as what was written, holes at its end too.
func (w *sparseWriter) finish() error {
	if w.end == w.off {
		return nil
	}
	return w.f.Truncate(w.off)
}

func (w *sparseWriter) written() int64 { return w.off }
