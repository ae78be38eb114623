package transfer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sparseMin is the smallest file, in bytes, whose holes are worth an entry of its own kind.
const sparseMin = 64 << 10

// maxExtents bounds the map of a sparse file; one with more pieces is written whole.
const maxExtents = 1 << 16

// extent is a piece of a file that has data.
type extent struct{ off, size int64 }

// extents finds the pieces of a file of the given size that have data. It returns
// nil for a file without holes, or where the file system does not tell.
func extents(f *os.File, size int64) []extent {
	var list []extent
	holes := false
	for off := int64(0); off < size; {
		start, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			holes = true // to the end
			break
		}
		if err != nil {
			return nil
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil || len(list) == maxExtents {
			return nil
		}
		end = min(end, size)
		if start > off || end < size {
			holes = true
		}
		if start >= size {
			break
		}
		list = append(list, extent{off: start, size: end - start})
		off = end
	}
	if !holes {
		return nil
	}
	return append(list, extent{off: size}) // which tells the size
}

// writeSparseHeader writes the header of a file with holes in the format 1.0 of
// GNU tar (its manual, "Storing Sparse Files"), which archive/tar reads and does
// not write. What follows is the data of the extents, then padding to tarBlock.
func writeSparseHeader(w io.Writer, h *tar.Header, list []extent) (stored int64, err error) {
	var index strings.Builder
	fmt.Fprintf(&index, "%d\n", len(list))
	for _, e := range list {
		fmt.Fprintf(&index, "%d\n%d\n", e.off, e.size)
		stored += e.size
	}
	index.WriteString(padding(int64(index.Len())))
	size := int64(index.Len()) + stored

	records := map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": h.Name, "GNU.sparse.realsize": strconv.FormatInt(h.Size, 10),
		"mtime": paxTime(h.ModTime.Unix(), h.ModTime.Nanosecond()),
		"size":  strconv.FormatInt(size, 10), "uid": strconv.Itoa(h.Uid), "gid": strconv.Itoa(h.Gid),
	}
	for key, value := range h.PAXRecords {
		records[key] = value
	}
	keys := make([]string, 0, len(records))
	for key := range records {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	var pax strings.Builder
	for _, key := range keys {
		pax.WriteString(paxRecord(key, records[key]))
	}
	var out strings.Builder
	out.WriteString(rawHeader("PaxHeaders.0/"+path.Base(h.Name), 'x', &tar.Header{Mode: 0o644}, int64(pax.Len())))
	out.WriteString(pax.String())
	out.WriteString(padding(int64(pax.Len())))
	out.WriteString(rawHeader("GNUSparseFile.0/"+path.Base(h.Name), tar.TypeReg, h, size))
	out.WriteString(index.String())
	_, err = io.WriteString(w, out.String())
	return stored, err
}

// padding fills a block up.
func padding(n int64) string { return strings.Repeat("\x00", int((tarBlock-n%tarBlock)%tarBlock)) }

// paxRecord is one line of an extended header: it starts with its own length.
func paxRecord(key, value string) string {
	rest := " " + key + "=" + value + "\n"
	n := len(rest)
	for n != len(rest)+len(strconv.Itoa(n)) {
		n = len(rest) + len(strconv.Itoa(n))
	}
	return strconv.Itoa(n) + rest
}

func paxTime(sec int64, nsec int) string {
	if nsec == 0 {
		return strconv.FormatInt(sec, 10)
	}
	sign := ""
	if sec < 0 { // the fraction counts away from zero, too
		sign, sec, nsec = "-", -sec-1, 1e9-nsec
	}
	return strings.TrimRight(fmt.Sprintf("%s%d.%09d", sign, sec, nsec), "0")
}

// rawHeader is a block in the ustar format. Numbers that do not fit are left to
// the extended header before it.
func rawHeader(name string, kind byte, h *tar.Header, size int64) string {
	var b [tarBlock]byte
	octal := func(field []byte, n int64) {
		digits := len(field) - 1
		if n < 0 || n >= 1<<(3*digits) {
			n = 0
		}
		copy(field, fmt.Sprintf("%0*o", digits, n))
	}
	copy(b[:100], strings.ToValidUTF8(name, "_"))
	octal(b[100:108], h.Mode)
	octal(b[108:116], int64(h.Uid))
	octal(b[116:124], int64(h.Gid))
	octal(b[124:136], size)
	octal(b[136:148], max(h.ModTime.Unix(), 0))
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	copy(b[148:156], "        ")
	sum := int64(0)
	for _, c := range b {
		sum += int64(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return string(b[:])
}
