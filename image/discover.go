package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"machined/internal/vpick"

	"golang.org/x/sys/unix"
)

// List returns all images of the search path, .host among them, sorted by name.
// Directories that are missing count as empty; an image that disappears or
// cannot be read while it is looked at is left out.
func (s *Store) List(ctx context.Context) ([]Image, error) {
	found := map[string]Image{}
	for _, dir := range s.cfg.SearchPath {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list images: %w", err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
				continue
			}
			return nil, fmt.Errorf("list images: %w", err)
		}
		for _, entry := range entries {
			if err := ctx.Err(); err != nil {
				return nil, fmt.Errorf("list images: %w", err)
			}
			if skipped(entry.Name()) {
				continue
			}
			name, ok := nameOf(dir, entry.Name())
			if !ok {
				continue
			}
			if _, known := found[name]; known {
				continue
			}
			img, err := s.describe(dir, entry.Name(), name)
			if err != nil {
				if !errors.Is(err, ErrNoSuchImage) {
					s.log.WithField("image", name).WithError(err).Warn("Image left out of the list")
				}
				continue
			}
			found[name] = img
		}
	}
	if !s.cfg.NoHost {
		if host, err := s.host(); err == nil {
			found[HostName] = host
		}
	}
	list := make([]Image, 0, len(found))
	for _, img := range found {
		list = append(list, img)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list, nil
}

// Get finds the image called name. It returns ErrInvalidName or ErrNoSuchImage.
func (s *Store) Get(ctx context.Context, name string) (Image, error) {
	if err := CheckName(name); err != nil {
		return Image{}, err
	}
	if name == HostName && !s.cfg.NoHost {
		return s.host()
	}
	for _, dir := range s.cfg.SearchPath {
		if err := ctx.Err(); err != nil {
			return Image{}, on(name, err)
		}
		img, err := s.getIn(dir, name)
		if errors.Is(err, ErrNoSuchImage) {
			continue
		}
		return img, err
	}
	return Image{}, tell(ErrNoSuchImage, "there is no image %q", name)
}

// getIn looks for name in one directory, in each form an image may have there.
func (s *Store) getIn(dir, name string) (Image, error) {
	for _, suffix := range []string{"", rawSuffix, mstackSuffix, pickSuffix, rawSuffix + pickSuffix, mstackSuffix + pickSuffix} {
		file := name + suffix
		if len(file) > nameMax {
			continue
		}
		got, ok := nameOf(dir, file)
		if !ok || got != name {
			continue
		}
		img, err := s.describe(dir, file, name)
		if errors.Is(err, ErrNoSuchImage) {
			continue
		}
		return img, err
	}
	return Image{}, tell(ErrNoSuchImage, "there is no image %q in %q", name, dir)
}

// nameOf tells which image, if any, the entry file of dir would be.
func nameOf(dir, file string) (string, bool) {
	st, err := os.Stat(filepath.Join(dir, file)) // symlinks are followed
	if err != nil {
		return "", false
	}
	name := file
	switch {
	case st.IsDir():
		if stem, ok := strings.CutSuffix(name, pickSuffix); ok {
			name = stem
			if stem, ok := strings.CutSuffix(name, rawSuffix); ok {
				name = stem
			} else if stem, ok := strings.CutSuffix(name, mstackSuffix); ok {
				name = stem
			}
		} else if stem, ok := strings.CutSuffix(name, mstackSuffix); ok {
			name = stem
		}
	case st.Mode().IsRegular():
		stem, ok := strings.CutSuffix(name, rawSuffix)
		if !ok {
			return "", false
		}
		name = stem
	case st.Mode()&fs.ModeDevice != 0 && st.Mode()&fs.ModeCharDevice == 0:
		name = strings.TrimSuffix(name, rawSuffix)
	default:
		return "", false
	}
	return name, ValidName(name)
}

// describe fills in an image from the entry file of dir.
func (s *Store) describe(dir, file, name string) (Image, error) {
	path := filepath.Join(dir, file)
	if strings.HasSuffix(file, pickSuffix) && isDir(path) {
		picked, err := pickVersion(path, strings.TrimSuffix(file, pickSuffix))
		if err != nil {
			return Image{}, on(name, err)
		}
		path = filepath.Join(path, picked)
	}
	img, err := inspect(path)
	if err != nil {
		return Image{}, on(name, err)
	}
	img.Name, img.Class = name, s.cfg.Class
	img.ReadOnly = img.ReadOnly || img.Hidden() || img.Vendor()
	return img, nil
}

// host describes the host's own tree.
func (s *Store) host() (Image, error) {
	img, err := inspect(s.cfg.HostRoot)
	if err != nil {
		return Image{}, on(HostName, err)
	}
	img.Name, img.Class, img.ReadOnly = HostName, s.cfg.Class, true
	return img, nil
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// pickVersion returns the newest entry of a versioned directory for images called
// name, which still has its form suffix (".raw", ".mstack") or none.
func pickVersion(dir, name string) (string, error) {
	suffix := ""
	for _, known := range []string{rawSuffix, mstackSuffix} {
		if stem, ok := strings.CutSuffix(name, known); ok {
			name, suffix = stem, known
		}
	}
	file, err := vpick.Newest(dir, name, suffix, suffix != rawSuffix)
	if err != nil {
		return "", ErrNoSuchImage
	}
	return file, nil
}
