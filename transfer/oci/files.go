package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// files is a place with the files of an image, by their names with slashes.
type files interface {
	open(name string) (r io.ReadCloser, size int64, err error)
	close() error
}

// dirFiles are those below a directory. No name leads out of it.
type dirFiles struct{ root *os.Root }

func (d dirFiles) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = bad("%q is not a regular file", name)
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

func (d dirFiles) close() error { return d.root.Close() }

// tarFiles are those in a tar archive that can be read anywhere.
type tarFiles struct {
	f       *os.File
	entries map[string]tarEntry
}

type tarEntry struct {
	at, size int64
	link     string // name of another entry
}

// maxEntries bounds an archive of images: one file for each layer and little more.
const maxEntries = 20_000

// indexTar finds the files in an archive, which f takes over. Its errors but those of
// reading are ErrImage.
func indexTar(f *os.File) (*tarFiles, error) {
	t := &tarFiles{f: f, entries: map[string]tarEntry{}}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	r := tar.NewReader(f) // it reads headers to the byte, and seeks over the rest
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		var system *fs.PathError
		if errors.As(err, &system) {
			return nil, err
		}
		if err != nil {
			return nil, bad("the archive: %w", err)
		}
		if len(t.entries) >= maxEntries {
			return nil, bad("the archive has more than %d entries", maxEntries)
		}
		name := path.Clean("/" + h.Name)[1:]
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			if h.Size < 0 || at+h.Size > st.Size() {
				return nil, bad("the archive ends within %.80q", name)
			}
			t.entries[name] = tarEntry{at: at, size: h.Size}
		case tar.TypeSymlink: // docker and podman save what is there already so
			t.entries[name] = tarEntry{link: path.Join("/", path.Dir(name), h.Linkname)[1:]}
		case tar.TypeLink:
			t.entries[name] = tarEntry{link: path.Clean("/" + h.Linkname)[1:]}
		}
	}
}

func (t *tarFiles) open(name string) (io.ReadCloser, int64, error) {
	name = path.Clean("/" + name)[1:]
	for range 8 {
		e, ok := t.entries[name]
		if !ok {
			return nil, 0, fmt.Errorf("open %.100q in the archive: %w", name, fs.ErrNotExist)
		}
		if e.link == "" {
			return io.NopCloser(io.NewSectionReader(t.f, e.at, e.size)), e.size, nil
		}
		name = e.link
	}
	return nil, 0, bad("links of %.100q in the archive lead nowhere", name)
}

func (t *tarFiles) close() error { return t.f.Close() }

// readSmall reads a whole file of at most MetadataMax bytes.
func readSmall(f files, name string) ([]byte, error) {
	r, size, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	if size > MetadataMax {
		return nil, bad("%.80q is larger than %d bytes", name, MetadataMax)
	}
	data, err := io.ReadAll(io.LimitReader(r, MetadataMax+1))
	if err == nil && len(data) > MetadataMax {
		err = bad("%.80q is larger than %d bytes", name, MetadataMax)
	}
	return data, err
}

func blobName(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }
