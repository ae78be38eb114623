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
	"time"

	"machined/internal/btrfs"
	"machined/internal/overlay"
)

// SnapshotsDir is where in the pool the snapshots of images are kept, as
// IMAGE/SNAPSHOT or IMAGE/SNAPSHOT.raw.
const SnapshotsDir = overlay.PrivateDir + "/snapshots"

// ErrNoSuchSnapshot is wrapped with the names of the image and of the snapshot.
var ErrNoSuchSnapshot = errors.New("no such snapshot")

// Snapshot is the state of an image at one time.
type Snapshot struct {
	Image, Name string
	Created     time.Time
	Type        Type
	// Usage is in bytes, Unknown where nothing counts it.
	Usage uint64
}

// CheckSnapshotName returns an ErrInvalidName for what cannot name a snapshot: it
// must be a file name that is not hidden and has room for a suffix.
func CheckSnapshotName(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if name[0] == '.' || len(name) > nameMax-16 {
		return fmt.Errorf("%w %q: a snapshot's name has at most %d bytes and no leading dot", ErrInvalidName, name, nameMax-16)
	}
	return nil
}

// Snapshot keeps the state of an image under snap, or, when that is "", under the
// present time, and returns the snapshot's name. A subvolume may be in use
// meanwhile; another image must not be, or it is ErrBusy: a copy of files that
// change is the state of no time.
func (s *Store) Snapshot(ctx context.Context, name, snap string) (string, error) {
	if snap != "" {
		if err := CheckSnapshotName(snap); err != nil {
			return "", err
		}
	}
	img, err := s.Get(ctx, name)
	if err != nil {
		return "", err
	}
	fail := func(err error) (string, error) { return "", copying(name, err) }
	if err := copyable(img); err != nil {
		return fail(err)
	}
	dir := s.snapshotsOf(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	defer removeEmpty(dir) // when nothing came of it
	if img.Type != TypeSubvolume || !liesOnBtrfs(dir) {
		lock, err := s.lockImage(img, false)
		if err != nil {
			return fail(err)
		}
		defer lock.Close()
	}
	c, err := copyImage(ctx, img, dir, name)
	if err != nil {
		return fail(err)
	}
	defer c.drop()
	c.limit = Unknown
	if err := c.finish(); err != nil {
		return fail(err)
	}
	suffix := ""
	if !c.tree {
		suffix = rawSuffix
	}
	// A directory stays writable to root: immutable ones could not be renamed
	// when the image is.
	readOnly := !c.tree || c.subvolume
	for try := 1; ; try++ {
		as := snap
		if as == "" {
			as = time.Now().UTC().Format("20060102-150405")
			if try > 1 {
				as = fmt.Sprintf("%s-%d", as, try)
			}
		}
		if _, err := findSnapshot(dir, as); err == nil {
			err = tell(ErrExists, "image %q has a snapshot %q already", name, as)
			if snap == "" && try < 100 {
				continue
			}
			return fail(err)
		}
		err := c.place(filepath.Join(dir, as+suffix), readOnly)
		if errors.Is(err, ErrExists) && snap == "" && try < 100 {
			continue
		}
		if err != nil {
			return fail(err)
		}
		if err := errors.Join(syncDir(dir), syncDir(filepath.Dir(dir)), syncDir(s.cfg.PoolDir)); err != nil {
			return fail(err)
		}
		return as, nil
	}
}

func liesOnBtrfs(path string) bool {
	dir, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = dir.Close() }()
	return btrfs.IsBtrfs(dir)
}

func (s *Store) snapshotsOf(name string) string {
	return filepath.Join(s.cfg.PoolDir, SnapshotsDir, name)
}

// findSnapshot finds the path of a snapshot in its image's directory.
func findSnapshot(dir, snap string) (string, error) {
	for _, suffix := range []string{"", rawSuffix} {
		path := filepath.Join(dir, snap+suffix)
		st, err := os.Lstat(path)
		if err == nil && (st.IsDir() && suffix == "" || st.Mode().IsRegular() && suffix != "") {
			return path, nil
		}
	}
	return "", ErrNoSuchSnapshot
}

// Snapshots lists the snapshots of an image, oldest first; "" stands for all
// images, by name. It is no error to have none, or to have lost the image.
func (s *Store) Snapshots(ctx context.Context, name string) ([]Snapshot, error) {
	names := []string{name}
	if name == "" {
		entries, err := os.ReadDir(filepath.Join(s.cfg.PoolDir, SnapshotsDir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list snapshots: %w", err)
		}
		names = nil
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	var list []Snapshot
	for _, image := range names {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list snapshots: %w", err)
		}
		if err := CheckName(image); err != nil {
			if name != "" {
				return nil, err
			}
			continue
		}
		of, err := snapshotsIn(s.snapshotsOf(image), image)
		if err != nil {
			return nil, on(image, err)
		}
		list = append(list, of...)
	}
	return list, nil
}

func snapshotsIn(dir, image string) ([]Snapshot, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	var list []Snapshot
	for _, e := range entries {
		snap := e.Name()
		if !e.IsDir() {
			var ok bool
			if snap, ok = strings.CutSuffix(snap, rawSuffix); !ok || !e.Type().IsRegular() {
				continue
			}
		}
		if CheckSnapshotName(snap) != nil {
			continue
		}
		img, err := inspect(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // removed meanwhile
		}
		created := img.Created
		if st, err := os.Stat(img.Path); err == nil && (img.Type == TypeRaw || created.IsZero()) {
			created = birth(img.Path, st.ModTime())
		}
		list = append(list, Snapshot{Image: image, Name: snap, Created: created, Type: img.Type, Usage: img.Usage})
	}
	sort.Slice(list, func(i, j int) bool {
		if !list[i].Created.Equal(list[j].Created) {
			return list[i].Created.Before(list[j].Created)
		}
		return list[i].Name < list[j].Name
	})
	return list, nil
}

// Rollback brings an image back to a snapshot, the newest when snap is "", and
// returns the snapshot's name. The snapshot stays. At any time the image is
// either the old or the new one, whole. Settings beside the image stay.
func (s *Store) Rollback(ctx context.Context, name, snap string) (string, error) {
	img, err := s.Get(ctx, name)
	if err != nil {
		return "", err
	}
	fail := func(err error) (string, error) { return "", on(name, err) }
	if err := changeable(img); err != nil {
		return fail(err)
	}
	if err := copyable(img); err != nil {
		return fail(err)
	}
	dir := s.snapshotsOf(name)
	if snap == "" {
		list, err := snapshotsIn(dir, name)
		if err != nil {
			return fail(err)
		}
		if len(list) == 0 {
			return fail(tell(ErrNoSuchSnapshot, "image %q has no snapshot", name))
		}
		snap = list[len(list)-1].Name
	} else if err := CheckSnapshotName(snap); err != nil {
		return "", err
	}
	path, err := findSnapshot(dir, snap)
	if err != nil {
		return fail(tell(err, "image %q has no snapshot %q", name, snap))
	}
	from, err := inspect(path)
	if err != nil {
		return fail(err)
	}
	if (from.Type == TypeRaw) != (img.Type == TypeRaw) {
		return fail(tell(ErrNotSupported, "snapshot %q is of another type than image %q", snap, name))
	}
	lock, err := s.lockImage(img, true)
	if err != nil {
		return fail(err)
	}
	defer lock.Close()
	place, err := filepath.EvalSymlinks(img.Path)
	if err != nil {
		return fail(err)
	}
	st, err := os.Lstat(place)
	if err != nil {
		return fail(err)
	}
	if _, ok := s.layered(img); ok {
		if err := s.replaceLayers(ctx, img, from); err != nil {
			return fail(err)
		}
		return snap, nil
	}
	c, err := copyImage(ctx, from, filepath.Dir(place), name)
	if err != nil {
		return fail(err)
	}
	defer c.drop()
	if img.Type == TypeSubvolume {
		c.limit = img.Limit
	}
	if err := c.finish(); err != nil {
		return fail(err)
	}
	if err := c.swap(place, st, img.ReadOnly); err != nil {
		return fail(err)
	}
	return snap, nil
}

// Prune removes snapshots of an image: those that are named, or, when none is, all
// but the newest keep. It returns what was removed, oldest first.
func (s *Store) Prune(ctx context.Context, name string, snaps []string, keep int) ([]string, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	dir := s.snapshotsOf(name)
	fail := func(err error) error { return on(name, err) }
	if len(snaps) == 0 {
		list, err := snapshotsIn(dir, name)
		if err != nil {
			return nil, fail(err)
		}
		if len(list) == 0 {
			if _, err := s.Get(ctx, name); err != nil {
				return nil, err
			}
		}
		for _, snap := range list[:max(0, len(list)-keep)] {
			snaps = append(snaps, snap.Name)
		}
	}
	var paths []string
	for _, snap := range snaps {
		if err := CheckSnapshotName(snap); err != nil {
			return nil, err
		}
		path, err := findSnapshot(dir, snap)
		if err != nil {
			return nil, tell(err, "image %q has no snapshot %q", name, snap)
		}
		paths = append(paths, path)
	}
	var removed []string
	for i, path := range paths {
		if err := ctx.Err(); err != nil {
			return removed, fail(err)
		}
		st, err := os.Lstat(path)
		if err == nil {
			err = removeAtOnce(path, st)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, fail(err)
		}
		removed = append(removed, snaps[i])
	}
	removeEmpty(dir)
	return removed, nil
}

// removeEmpty removes the directory of an image's snapshots, and those that it lies in,
// as far as they are empty.
func removeEmpty(dir string) {
	for range 3 { // up to overlay.PrivateDir
		if os.Remove(dir) != nil {
			return
		}
		dir = filepath.Dir(dir)
	}
}

// renameSnapshots lets the snapshots follow their image to its new name.
func (s *Store) renameSnapshots(name, newName string) error {
	_ = os.Remove(s.snapshotsOf(newName)) // an empty one is in nobody's way
	err := renameNew(s.snapshotsOf(name), s.snapshotsOf(newName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// removeSnapshots removes the snapshots of an image that has been removed.
func (s *Store) removeSnapshots(name string) error {
	dir := s.snapshotsOf(name)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		// One by one: each may be a subvolume.
		if st, err := e.Info(); err == nil {
			if err := removeAtOnce(filepath.Join(dir, e.Name()), st); err != nil {
				return err
			}
		}
	}
	removeEmpty(dir)
	return nil
}
