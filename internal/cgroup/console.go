package cgroup

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"

	"machined/internal/unit"
)

// A spawner's log is cut down to its last keepLogBytes when it has grown to
// maxLogBytes.
const (
	maxLogBytes  = 1 << 20
	keepLogBytes = 256 << 10
)

// Console returns the last whole lines of what a spawner wrote.
func (b *Backend) Console(name string, max int) ([]byte, error) {
	image, ok := unit.SpawnedImage(name)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	data, err := readTail(b.logPath(image), max)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

func readTail(path string, max int) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	cut := st.Size() > int64(max)
	if cut {
		if _, err := file.Seek(-int64(max), io.SeekEnd); err != nil {
			return nil, err
		}
	}
	data, err := io.ReadAll(io.LimitReader(file, int64(max)))
	if cut {
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			data = data[i+1:]
		}
	}
	return data, err
}

// trimLog cuts a log in place: the spawner holds it open for appending.
func trimLog(path string) error {
	st, err := os.Stat(path)
	if err != nil || st.Size() < maxLogBytes {
		return err
	}
	tail, err := readTail(path, keepLogBytes)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Truncate(0); err != nil {
		return err
	}
	_, err = file.Write(tail)
	return err
}
