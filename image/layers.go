package image

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"machined/internal/overlay"

	"golang.org/x/sys/unix"
)

// layered says whether an image is kept as layers (overlayfs) in the pool.
func (s *Store) layered(img Image) (overlay.Pool, bool) {
	if img.Type != TypeDirectory || img.Path != filepath.Join(s.cfg.PoolDir, img.Name) {
		return "", false
	}
	pool := overlay.Pool(s.cfg.PoolDir)
	return pool, pool.Has(img.Name)
}

// layerError tells a busy image from one that cannot be kept as layers.
func layerError(err error) error {
	switch {
	case errors.Is(err, overlay.ErrBusy):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case errors.Is(err, overlay.ErrNotSupported):
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return err
}

// cloneLayers makes a clone that shares the files of its original until one of the
// two changes them. The original becomes an image of that kind, too.
func (s *Store) cloneLayers(img Image, newName string, opts CloneOptions) error {
	if img.Type != TypeDirectory || img.Path != filepath.Join(s.cfg.PoolDir, img.Name) {
		return fmt.Errorf("%w: only a directory in the pool can share its files by overlayfs", ErrNotSupported)
	}
	lock, err := s.lockImage(img, true)
	if err != nil {
		return err
	}
	defer lock.Close()
	pool, was := s.layered(img)
	if !was {
		pool = overlay.Pool(s.cfg.PoolDir)
		if img.ReadOnly {
			if err := setImmutable(img.Path, false); err != nil {
				return err
			}
		}
	}
	ids, err := pool.Freeze(img.Name)
	if !was && img.ReadOnly {
		if err == nil {
			err = pool.SetReadOnly(img.Name, true)
		} else {
			err = errors.Join(err, setImmutable(img.Path, true))
		}
	}
	if err != nil {
		return layerError(err)
	}
	prepare := func(root int) error {
		if !opts.NewIdentity {
			return nil
		}
		return newIdentity(root, newName)
	}
	if err := pool.Create(newName, ids, prepare); err != nil {
		return layerError(err)
	}
	if opts.ReadOnly {
		return pool.SetReadOnly(newName, true)
	}
	return nil
}

// Flatten makes an image independent of all others: a plain directory instead of
// layers. For an image that is one already it does nothing.
func (s *Store) Flatten(ctx context.Context, name string) error {
	img, err := s.Get(ctx, name)
	if err != nil {
		return err
	}
	fail := func(err error) error { return copying(name, err) }
	if err := changeable(img); err != nil {
		return fail(err)
	}
	if _, ok := s.layered(img); !ok {
		return nil
	}
	lock, err := s.lockImage(img, true)
	if err != nil {
		return fail(err)
	}
	defer lock.Close()
	if err := s.replaceLayers(ctx, img, img); err != nil {
		return fail(err)
	}
	return nil
}

// replaceLayers puts a copy of from in the place of an image that is kept as layers.
func (s *Store) replaceLayers(ctx context.Context, img, from Image) error {
	c, err := copyImage(ctx, from, s.cfg.PoolDir, img.Name)
	if err != nil {
		return err
	}
	defer c.drop()
	if err := c.finish(); err != nil {
		return err
	}
	if err := overlay.Pool(s.cfg.PoolDir).Replace(img.Name, c.path); err != nil {
		return layerError(err)
	}
	c.path = ""
	if img.ReadOnly {
		err := setImmutable(img.Path, true)
		if err != nil && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	return nil
}
