package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"machined/internal/btrfs"

	"golang.org/x/sys/unix"
)

// LayerPrefix starts the names of layers of OCI images that are kept in the pool;
// the digest follows. Mount stacks list them, any number of them the same one. They
// are no images of their own, but hidden downloads.
const LayerPrefix = ".oci-"

// keptLayer marks a layer that was asked for by itself, or to be kept: it stays
// when the last image that lists it is removed, until the pool is cleaned.
const keptLayer = "trusted.machined.keep"

// LayerName is the name in the pool of the layer with a digest ("sha256:...").
func LayerName(digest string) string { return LayerPrefix + digest }

// HoldLayer opens a layer in the pool and holds it, so that nobody removes it as one
// that no image lists, for as long as the file is open. It returns fs.ErrNotExist
// when there is none.
func HoldLayer(pool, name string) (*os.File, error) {
	path := filepath.Join(pool, name)
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		f := os.NewFile(uintptr(fd), path)
		if err := unix.Flock(fd, unix.LOCK_SH); err != nil {
			_ = f.Close()
			return nil, os.NewSyscallError("flock", err)
		}
		// It may have been removed while we waited.
		var held, there unix.Stat_t
		err = unix.Fstat(fd, &held)
		if err == nil {
			err = unix.Lstat(path, &there)
		}
		if err == nil && held.Dev == there.Dev && held.Ino == there.Ino {
			return f, nil
		}
		_ = f.Close()
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// KeepLayer marks a layer as one that is kept though no image lists it.
func KeepLayer(layer *os.File) error {
	err := unix.Fsetxattr(int(layer.Fd()), keptLayer, []byte("1"), 0)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS) { // it is there already, and read-only
		mark := func(on bool) error { return setImmutable(layer.Name(), on) }
		if btrfs.IsSubvolume(layer) {
			mark = func(on bool) error { return btrfs.SetReadOnly(layer, on) }
		}
		if err = mark(false); err == nil {
			err = errors.Join(unix.Fsetxattr(int(layer.Fd()), keptLayer, []byte("1"), 0), mark(true))
		}
	}
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return os.NewSyscallError("setxattr", err)
}

// isLayer says whether an image is such a layer.
func (s *Store) isLayer(img Image) bool {
	return strings.HasPrefix(img.Name, LayerPrefix) && img.Path == filepath.Join(s.cfg.PoolDir, img.Name)
}

// listedLayers says which layers of the pool are listed by mount stacks, anywhere on
// the search path, by one of them. A stack that is being made counts.
func (s *Store) listedLayers() (map[string]string, error) {
	pool, err := filepath.EvalSymlinks(s.cfg.PoolDir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	listed := map[string]string{}
	stack := func(path string) {
		entries, err := os.ReadDir(path)
		if err != nil {
			return // gone meanwhile, or no directory
		}
		for _, entry := range entries {
			if entry.Type() != fs.ModeSymlink {
				continue
			}
			target, err := os.Readlink(filepath.Join(path, entry.Name()))
			if err != nil || !strings.HasPrefix(filepath.Base(target), LayerPrefix) {
				continue
			}
			if !filepath.IsAbs(target) {
				target = filepath.Join(path, target)
			}
			if dir, err := filepath.EvalSymlinks(filepath.Dir(target)); err == nil && dir == pool {
				listed[filepath.Base(target)] = path
			}
		}
	}
	for _, dir := range append([]string{s.cfg.PoolDir}, s.cfg.SearchPath...) {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return nil, err
		}
		for _, entry := range entries {
			name := entry.Name()
			path := filepath.Join(dir, name)
			if real, err := filepath.EvalSymlinks(path); err == nil {
				path = real // what links in it are relative to
			}
			switch {
			case strings.HasSuffix(name, mstackSuffix) || strings.HasPrefix(name, tempPrefix):
				stack(path)
			case strings.HasSuffix(name, mstackSuffix+pickSuffix):
				versions, _ := os.ReadDir(path)
				for _, version := range versions {
					stack(filepath.Join(path, version.Name()))
				}
			}
		}
	}
	return listed, nil
}

// layersOf are the layers of the pool that a mount stack lists.
func layersOf(path string) []string {
	var names []string
	entries, _ := os.ReadDir(path)
	for _, entry := range entries {
		if target, err := os.Readlink(filepath.Join(path, entry.Name())); err == nil && strings.HasPrefix(filepath.Base(target), LayerPrefix) {
			names = append(names, filepath.Base(target))
		}
	}
	return names
}

// removeLayer removes a layer unless an image lists it or somebody holds it, which
// is ErrBusy. With unasked, one that is to be kept is busy, too.
func (s *Store) removeLayer(name string, unasked bool) error {
	path := filepath.Join(s.cfg.PoolDir, name)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	layer := os.NewFile(uintptr(fd), path)
	defer func() { _ = layer.Close() }()
	if err := HoldTemp(layer); err != nil {
		return busy(name)
	}
	if unasked {
		if n, err := unix.Fgetxattr(fd, keptLayer, nil); err == nil && n > 0 {
			return tell(ErrBusy, "layer %q is to be kept", name)
		}
	}
	listed, err := s.listedLayers()
	if err != nil {
		return err
	}
	if by, ok := listed[name]; ok {
		return tell(ErrBusy, "layer %q belongs to image %q", name, strings.TrimSuffix(filepath.Base(by), mstackSuffix))
	}
	st, err := layer.Stat()
	if err != nil {
		return err
	}
	return removeAtOnce(path, st)
}

// DropLayers removes those of the layers in the pool that no image lists, nobody
// holds, and that are not to be kept. What cannot be removed stays for the next clean.
func (s *Store) DropLayers(names []string) {
	for _, name := range names {
		if err := s.removeLayer(name, true); err != nil && !errors.Is(err, ErrBusy) {
			s.log.WithField("image", name).WithError(err).Warn("Layer that no image lists not removed")
		}
	}
}

// cleanLayers removes the layers in the pool that no image lists.
func (s *Store) cleanLayers() ([]Removed, error) {
	entries, err := os.ReadDir(s.cfg.PoolDir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	var removed []Removed
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), LayerPrefix) || !entry.IsDir() {
			continue
		}
		err := s.removeLayer(entry.Name(), false)
		if errors.Is(err, ErrBusy) {
			continue
		}
		if err != nil {
			return removed, err
		}
		removed = append(removed, Removed{Name: entry.Name(), Freed: Unknown})
	}
	return removed, nil
}
