package transfer

import (
	"context"
	"errors"
	"io"
	"os"
	"path"
	"strings"

	"machined/internal/sys"

	"golang.org/x/sys/unix"
)

// Names of whiteouts (OCI image specification, layer.md).
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// layer is what an OCI layer needs to know while it is put on those below it.
type layer struct {
	made map[string]bool // paths of this layer, which its whiteouts leave alone
}

// applyLayer unpacks one layer of an OCI image over the tree of those below.
func applyLayer(ctx context.Context, r io.Reader, root *os.File, written func(bytes int64)) error {
	tail := &tailReader{r: r}
	u := newUntar(root, tail, written)
	u.layer = &layer{made: map[string]bool{}}
	return u.run(ctx, tail)
}

// enter is told of each entry before it is made; done means that it was a whiteout.
func (l *layer) enter(parent *os.File, dir, base string, isDir bool) (done bool, err error) {
	if !strings.HasPrefix(base, whiteout) {
		name := path.Join(dir, base)
		if !l.made[name] {
			if err := l.replace(parent, base, isDir); err != nil {
				return false, err
			}
		}
		for ; name != "." && name != "" && !l.made[name]; name = path.Dir(name) {
			l.made[name] = true
		}
		return false, nil
	}
	// The descriptor pins the directory; names below it cannot lead out of it.
	root, err := os.OpenRoot(sys.FDPath(parent))
	if err != nil {
		return true, err
	}
	defer func() { _ = root.Close() }()
	if base != opaque {
		hidden := strings.TrimPrefix(base, whiteout)
		if hidden == "" || hidden == "." || hidden == ".." {
			return true, unix.EINVAL
		}
		if l.made[path.Join(dir, hidden)] {
			return true, nil
		}
		return true, root.RemoveAll(hidden)
	}
	return true, l.clear(root, dir, ".")
}

// replace makes room for an entry that is of another type than what is below.
func (l *layer) replace(parent *os.File, base string, isDir bool) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(parent.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || err == nil && (isDir || st.Mode&unix.S_IFMT != unix.S_IFDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(sys.FDPath(parent))
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	return root.RemoveAll(base)
}

// clear removes what lower layers have below dir.
func (l *layer) clear(root *os.Root, dir, at string) error {
	f, err := root.Open(at)
	if err != nil {
		return err
	}
	list, err := f.ReadDir(-1)
	_ = f.Close()
	if err != nil {
		return err
	}
	for _, entry := range list {
		name := path.Join(at, entry.Name())
		switch {
		case !l.made[path.Join(dir, name)]:
			err = root.RemoveAll(name)
		case entry.IsDir():
			err = l.clear(root, dir, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
