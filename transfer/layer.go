package transfer

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"machined/internal/sys"

	"golang.org/x/sys/unix"
)

// Names of whiteouts in a layer (OCI image specification, layer.md). What else starts
// as the second was left behind by aufs and means nothing.
const (
	whiteout     = ".wh."
	whiteoutMeta = ".wh..wh."
	opaque       = ".wh..wh..opq"
)

// overlayOpaque says on a directory of a layer that those of the layers below do not
// show through (the kernel's overlayfs.rst).
const overlayOpaque = "trusted.overlay.opaque"

// unpackLayer unpacks one layer of an OCI image as overlayfs wants it: what a layer
// takes away becomes a device 0:0, a directory that hides those below an attribute.
func unpackLayer(ctx context.Context, r io.Reader, root *os.File, written func(bytes int64)) error {
	tail := &tailReader{r: r}
	u := newUntar(root, tail, written)
	u.layer = &layer{}
	return u.run(ctx, tail)
}

// layer is what is known of a layer while it is unpacked.
type layer struct {
	gone bool // it has taken something away
}

// ignored says whether an entry is one of aufs's own.
func (l *layer) ignored(dir, base string) bool {
	if base != opaque && strings.HasPrefix(base, whiteoutMeta) {
		return true
	}
	for part := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(part, whiteoutMeta) {
			return true
		}
	}
	return false
}

// enter is told of each entry before it is made; done means that it was a whiteout.
func (l *layer) enter(parent *os.File, base string, h *tar.Header) (done bool, err error) {
	at := int(parent.Fd())
	switch {
	case base == opaque:
		return true, setOpaque(parent)
	case strings.HasPrefix(base, whiteout):
		l.gone = true
		return true, takeAway(at, strings.TrimPrefix(base, whiteout))
	case !l.gone:
		return false, nil
	}
	// Taken away and made anew in the same layer: nothing below shows through.
	var st unix.Stat_t
	if err := unix.Fstatat(at, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || !isWhiteout(st) {
		return false, nil //nolint:nilerr // there is nothing yet
	}
	if err := unix.Unlinkat(at, base, 0); err != nil || h.Typeflag != tar.TypeDir {
		return false, err
	}
	if err := unix.Mkdirat(at, base, 0o700); err != nil {
		return false, err
	}
	return false, hideBelow(at, base)
}

func isWhiteout(st unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// takeAway hides what the layers below have under a name.
func takeAway(at int, hidden string) error {
	if hidden == "" || hidden == "." || hidden == ".." {
		return unix.EINVAL
	}
	var st unix.Stat_t
	err := unix.Fstatat(at, hidden, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return os.NewSyscallError("mknod", unix.Mknodat(at, hidden, unix.S_IFCHR, 0))
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return hideBelow(at, hidden)
	}
	return nil // a file of this layer hides what is below by itself
}

func hideBelow(at int, name string) error {
	dir, err := openNode(at, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return setOpaque(dir)
}

func setOpaque(dir *os.File) error {
	return os.NewSyscallError("setxattr", unix.Setxattr(sys.FDPath(dir), overlayOpaque, []byte("y"), 0))
}
