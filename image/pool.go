package image

import (
	"context"
	"errors"
	"fmt"
	"os"

	"machined/internal/btrfs"

	"golang.org/x/sys/unix"
)

// CleanMode says which images Clean removes.
type CleanMode string

// The modes of CleanPool.
const (
	CleanHidden CleanMode = "hidden" // only hidden images
	CleanAll    CleanMode = "all"
)

// Removed is an image that Clean removed and the bytes that this freed, Unknown
// when not known.
type Removed struct {
	Name  string
	Freed uint64
}

// PoolPath returns the directory in which new images are made.
func (s *Store) PoolPath() string { return s.cfg.PoolDir }

// PoolUsage returns the bytes that the pool takes, Unknown off btrfs.
func (s *Store) PoolUsage() uint64 { return s.poolQuota().Referenced }

// PoolLimit returns the bytes that the pool may take, Unknown without limit.
func (s *Store) PoolLimit() uint64 { return s.poolQuota().ReferencedMax }

func (s *Store) poolQuota() btrfs.Limits {
	none := btrfs.Limits{Referenced: Unknown, Exclusive: Unknown, ReferencedMax: Unknown, ExclusiveMax: Unknown}
	dir, err := os.Open(s.cfg.PoolDir)
	if err != nil {
		return none
	}
	defer func() { _ = dir.Close() }()
	if !btrfs.IsSubvolume(dir) {
		return none
	}
	quota, err := btrfs.Quota(dir)
	if err != nil {
		return none
	}
	return quota
}

// SetPoolLimit bounds the pool in bytes; Unknown lifts the limit. The pool must
// be a subvolume of btrfs; quota is turned on where it is off.
func (s *Store) SetPoolLimit(_ context.Context, limit uint64) error {
	fail := func(err error) error { return fmt.Errorf("pool %q: %w", s.cfg.PoolDir, err) }
	// Where the limit has been reached nothing can be made; all is set up then.
	if err := s.SetupPool(); err != nil && !errors.Is(err, unix.EDQUOT) {
		return fail(err)
	}
	dir, err := os.Open(s.cfg.PoolDir)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = dir.Close() }()
	if !btrfs.IsSubvolume(dir) {
		return fail(ErrNotSupported)
	}
	if err := btrfs.SetLimit(dir, limit); err != nil {
		return fail(quotaError(fmt.Sprintf("pool %q", s.cfg.PoolDir), err))
	}
	return nil
}

// SetupPool makes the pool directory where it is missing, and on btrfs turns
// quota on and has the pool counted as a whole. Elsewhere it does no more.
func (s *Store) SetupPool() error {
	if err := os.MkdirAll(s.cfg.PoolDir, 0o700); err != nil {
		return fmt.Errorf("set up pool: %w", err)
	}
	dir, err := os.Open(s.cfg.PoolDir)
	if err != nil {
		return fmt.Errorf("set up pool: %w", err)
	}
	defer func() { _ = dir.Close() }()
	if !btrfs.IsSubvolume(dir) {
		return nil
	}
	if err := btrfs.EnableQuota(dir); err != nil {
		return fmt.Errorf("set up pool %q: %w", s.cfg.PoolDir, err)
	}
	if err := btrfs.AccountSubtree(dir); err != nil {
		return fmt.Errorf("set up pool %q: %w", s.cfg.PoolDir, err)
	}
	if err := btrfs.Sweep(dir); err != nil {
		return fmt.Errorf("set up pool %q: %w", s.cfg.PoolDir, err)
	}
	return nil
}

// Clean removes the images that mode names. Images of the host and images in use
// stay; the first other failure ends it.
func (s *Store) Clean(ctx context.Context, mode CleanMode) ([]Removed, error) {
	if mode != CleanHidden && mode != CleanAll {
		return nil, fmt.Errorf("%w: unknown mode %q", ErrInvalid, mode)
	}
	list, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	var removed []Removed
	for _, img := range list {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		if img.IsHost() || img.Vendor() || (mode == CleanHidden && !img.Hidden()) || s.isLayer(img) {
			continue // layers come last: images may list them
		}
		err := s.remove(img)
		switch {
		case errors.Is(err, ErrBusy):
			continue
		case err != nil:
			return removed, err
		}
		removed = append(removed, Removed{Name: img.Name, Freed: img.UsageExclusive})
	}
	layers, err := s.cleanLayers()
	return append(removed, layers...), err
}
