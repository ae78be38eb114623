package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"machined/internal/sys"
	"machined/internal/vpick"

	"golang.org/x/sys/unix"
)

// StackSuffix ends the name of a directory that is a mount stack: links to layers,
// lowest number lowest, and a directory rw for changes (systemd.mstack(7)).
const StackSuffix = mstackSuffix

// layerEntry starts the names of layers in a mount stack.
const layerEntry = "layer@"

// StackTrees lists the directories that a mount stack at path is made of, topmost
// first: its changes, if there are any, then its layers. A layer that is a disk image
// is ErrNotSupported.
func StackTrees(path string) ([]string, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var layers, trees []string
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), layerEntry) {
			continue
		}
		if strings.HasSuffix(strings.TrimSuffix(entry.Name(), pickSuffix), rawSuffix) {
			return nil, fmt.Errorf("%q in %q: %w", entry.Name(), path, ErrNotSupported)
		}
		layers = append(layers, entry.Name())
	}
	slices.SortStableFunc(layers, func(a, b string) int { return vpick.Compare(b[len(layerEntry):], a[len(layerEntry):]) })
	for _, name := range append([]string{"rw/data"}, append(layers, "root")...) {
		tree := filepath.Join(path, name)
		if st, err := os.Stat(tree); err != nil || !st.IsDir() {
			continue
		}
		if name == "rw/data" {
			if changes, err := os.ReadDir(tree); err == nil && len(changes) == 0 {
				continue
			}
		}
		trees = append(trees, tree)
	}
	return trees, nil
}

// readStacked reads a small file of a tree that is made of others, as overlayfs
// would show it. Links on the way are followed only at the end of a path.
func readStacked(trees []string, name string) (string, error) {
	for range 8 {
		data, link, err := lookStacked(trees, name)
		if err != nil || link == "" {
			return data, err
		}
		if !path.IsAbs(link) {
			link = path.Join("/", path.Dir(name), link)
		}
		name = strings.TrimPrefix(path.Clean(link), "/")
	}
	return "", unix.ELOOP
}

func lookStacked(trees []string, name string) (data, link string, err error) {
	for _, tree := range trees {
		root, err := os.Open(tree)
		if err != nil {
			return "", "", err
		}
		data, link, next, err := lookLayer(int(root.Fd()), name)
		_ = root.Close()
		if !next {
			return data, link, err
		}
	}
	return "", "", fs.ErrNotExist
}

// lookLayer looks for a file in one layer; next says that the layers below count.
func lookLayer(root int, name string) (data, link string, next bool, err error) {
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			continue
		}
		part := name[:i]
		node, err := sys.OpenHow(root, part, &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_NO_SYMLINKS})
		if errors.Is(err, fs.ErrNotExist) {
			return "", "", true, nil
		}
		if err != nil {
			return "", "", false, err
		}
		var st unix.Stat_t
		err = unix.Fstat(int(node.Fd()), &st)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK && part == name {
			buf := make([]byte, unix.PathMax)
			n, readErr := unix.Readlinkat(int(node.Fd()), "", buf)
			_ = node.Close()
			return "", string(buf[:max(n, 0)]), false, readErr
		}
		opaque := err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && isOpaque(sys.FDPath(node))
		_ = node.Close()
		switch {
		case err != nil:
			return "", "", false, err
		case st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0: // a whiteout
			return "", "", false, fs.ErrNotExist
		case part == name:
			data, err := readIn(root, name)
			return data, "", false, err
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return "", "", false, unix.ENOTDIR
		case opaque:
			// What is below has no say any more, found here or not.
			data, link, next, err := lookInside(root, name)
			if next {
				err = fs.ErrNotExist
			}
			return data, link, false, err
		}
	}
	return "", "", true, nil
}

// lookInside is lookLayer for a file in a directory that hides those below.
func lookInside(root int, name string) (data, link string, next bool, err error) {
	node, err := sys.OpenHow(root, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return "", "", errors.Is(err, fs.ErrNotExist), err
	}
	defer func() { _ = node.Close() }()
	if st, err := node.Stat(); err == nil && st.Mode().Type() == fs.ModeSymlink {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(node.Fd()), "", buf)
		return "", string(buf[:max(n, 0)]), false, err
	}
	data, err = readIn(root, name)
	return data, "", false, err
}

func isOpaque(path string) bool {
	var value [4]byte
	n, err := unix.Getxattr(path, "trusted.overlay.opaque", value[:])
	return err == nil && n == 1 && value[0] == 'y'
}

// cloneStack makes a clone of a mount stack: it lists the same layers, and has a
// copy of what is the stack's own.
func (s *Store) cloneStack(ctx context.Context, img Image, newName string, opts CloneOptions) error {
	for _, name := range layersOf(img.Path) {
		// What the clone is to list must not go when the original does meanwhile.
		if layer, err := HoldLayer(s.cfg.PoolDir, name); err == nil {
			defer func() { _ = layer.Close() }()
		}
	}
	c, err := copyImage(ctx, img, s.cfg.PoolDir, newName)
	if err != nil {
		return err
	}
	defer c.drop()
	if err := relink(img.Path, c.path); err != nil {
		return err
	}
	rw := filepath.Join(c.path, "rw")
	if opts.ReadOnly {
		if _, err := os.Lstat(rw); err == nil {
			return tell(ErrNotSupported, "image %q is a mount stack with changes of its own, of which no read-only copy can be made", img.Name)
		}
	}
	if err := os.RemoveAll(filepath.Join(rw, "work")); err != nil { // overlayfs's own
		return err
	}
	if data, err := os.Open(filepath.Join(rw, "data")); err == nil && opts.NewIdentity {
		err = newIdentity(int(data.Fd()), newName)
		_ = data.Close()
		if err != nil {
			return fmt.Errorf("give it an identity: %w", err)
		}
	}
	if err := c.finish(); err != nil {
		return err
	}
	return c.place(filepath.Join(s.cfg.PoolDir, newName+mstackSuffix), false)
}

// relink makes the links of a copied stack point to where the original's do.
func relink(from, to string) error {
	entries, err := os.ReadDir(to)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		link := filepath.Join(to, entry.Name())
		target, err := os.Readlink(link)
		if err != nil || filepath.IsAbs(target) {
			continue // no link, or one that can stay
		}
		place, err := filepath.EvalSymlinks(from)
		if err != nil {
			return err
		}
		if place, err = filepath.Rel(to, filepath.Join(place, target)); err != nil {
			return err
		}
		if err := errors.Join(os.Remove(link), os.Symlink(place, link)); err != nil {
			return err
		}
	}
	return nil
}

// stackMetadata is what a mount stack says about itself.
func stackMetadata(path string) (Metadata, error) {
	trees, err := StackTrees(path)
	if err != nil {
		return Metadata{}, err
	}
	return metadataOf(func(name string) (string, error) { return readStacked(trees, name) }), nil
}
