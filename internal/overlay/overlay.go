// Package overlay owns images that are kept as changes over other trees: where
// their layers lie in the pool, how they are mounted (overlayfs), and which layers
// are still needed. It decides nothing about names, locks of images, or who may do
// what: its callers hold the image's lock.
//
// In the pool, next to an empty directory NAME on which the image is mounted:
//
//	machined.v/overlays/NAME/layers  the trees below, one a line, topmost first
//	machined.v/overlays/NAME/upper   what differs from them
//	machined.v/overlays/NAME/work    overlayfs's own
//	machined.v/bases/ID              a tree that nobody changes any more
//
// The directory of NAME under overlays is the image: as long as it is there the
// rest of it can be made anew. Each step below leaves that true, or not yet so.
package overlay

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// PrivateDir is the directory of the pool that holds what is no image. To stock's
// programs it is none either: a directory of versions (systemd.v(7)) with none in it.
const PrivateDir = "machined.v"

// maxLayers bounds the trees below an image: their names go to the kernel in one
// string of at most 256 bytes.
const maxLayers = 10

// tempPrefix starts the names of what is being made.
const tempPrefix = ".#machined-"

// Errors of this package.
var (
	ErrNotSupported = errors.New("overlayfs is of no use here")
	ErrBusy         = errors.New("image is in use")
)

// Pool is a directory of images.
type Pool string

func (p Pool) image(name string) string { return filepath.Join(string(p), name) }
func (p Pool) layout(name string) string {
	return filepath.Join(string(p), PrivateDir, "overlays", name)
}
func (p Pool) base(id string) string { return filepath.Join(string(p), PrivateDir, "bases", id) }

// Has says whether the image called name is kept as layers.
func (p Pool) Has(name string) bool {
	st, err := os.Lstat(filepath.Join(p.layout(name), "layers"))
	return err == nil && st.Mode().IsRegular()
}

// Of tells the pool and the name of an image by its path.
func Of(path string) (Pool, string) {
	return Pool(filepath.Dir(path)), filepath.Base(path)
}

// hold keeps other processes from changing layers until the file is closed.
func (p Pool) hold() (*os.File, error) {
	for _, dir := range []string{p.layout(""), p.base("")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	f, err := os.Open(filepath.Join(string(p), PrivateDir))
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, os.NewSyscallError("flock", err)
	}
	return f, nil
}

// layers reads the trees below an image, and leaves the first out while what is to
// become it is still the image's own upper one.
func (p Pool) layers(name string) ([]string, error) {
	f, err := os.Open(filepath.Join(p.layout(name), "layers"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	ids, err := parseLayers(f)
	if err != nil {
		return nil, fmt.Errorf("read layers of image %q: %w", name, err)
	}
	if len(ids) > 1 {
		if _, err := os.Lstat(p.base(ids[0])); errors.Is(err, os.ErrNotExist) {
			ids = ids[1:]
		}
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("read layers of image %q: there are none", name)
	}
	return ids, nil
}

// parseLayers reads a list of layers, one ID a line.
func parseLayers(r io.Reader) ([]string, error) {
	var ids []string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		id := lines.Text()
		if raw, err := hex.DecodeString(id); err != nil || len(raw) != 8 {
			return nil, fmt.Errorf("%q is no layer", id)
		}
		ids = append(ids, id)
	}
	return ids, lines.Err()
}

func newID() string {
	var raw [8]byte
	_, _ = rand.Read(raw[:])
	return hex.EncodeToString(raw[:])
}

// writeLayers replaces the list of layers in a layout, durably.
func writeLayers(layout string, ids []string) error {
	temp := filepath.Join(layout, "layers.new")
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(ids, "\n") + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, filepath.Join(layout, "layers")); err != nil {
		return err
	}
	return syncDir(layout)
}

// makeLayout makes a layout under a temporary name; top is the tree whose root's
// attributes it takes.
func (p Pool) makeLayout(ids []string, top string) (string, error) {
	layout := p.layout(tempPrefix + newID())
	if err := os.Mkdir(layout, 0o700); err != nil {
		return "", err
	}
	err := makeUpper(layout, top)
	if err == nil {
		err = writeLayers(layout, ids)
	}
	if err != nil {
		_ = os.RemoveAll(layout)
		return "", err
	}
	return layout, nil
}

// makeUpper makes the writable directories of a layout.
func makeUpper(layout, top string) error {
	if err := os.RemoveAll(filepath.Join(layout, "work")); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(layout, "work"), 0o700); err != nil {
		return err
	}
	temp, upper := filepath.Join(layout, "upper.new"), filepath.Join(layout, "upper")
	if err := os.Mkdir(temp, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(top, &st); err != nil {
		return &os.PathError{Op: "stat", Path: top, Err: err}
	}
	err := errors.Join(os.Chown(temp, int(st.Uid), int(st.Gid)), unix.Chmod(temp, st.Mode&0o7777),
		unix.UtimesNanoAt(unix.AT_FDCWD, temp, []unix.Timespec{st.Atim, st.Mtim}, 0))
	if err != nil {
		return err
	}
	if err := os.Rename(temp, upper); err != nil {
		return err
	}
	return syncDir(layout)
}

// Freeze makes sure that the content of an image lies in layers that nobody changes
// any more, and returns them. A plain directory becomes an image that is kept as
// layers, at once: at each moment it is whole as the one or the other. ErrBusy says
// that something uses it.
func (p Pool) Freeze(name string) ([]string, error) {
	f, err := p.hold()
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if !p.Has(name) {
		return p.freezeTree(name)
	}
	ids, err := p.layers(name)
	if err != nil {
		return nil, err
	}
	upper := filepath.Join(p.layout(name), "upper")
	if entries, err := os.ReadDir(upper); err != nil || len(entries) == 0 {
		return ids, err
	}
	if len(ids) >= maxLayers {
		return nil, fmt.Errorf("image %q has %d layers: %w", name, len(ids), ErrNotSupported)
	}
	if err := p.Unmount(name); err != nil {
		return nil, err
	}
	id := newID()
	ids = append([]string{id}, ids...)
	if err := writeLayers(p.layout(name), ids); err != nil {
		return nil, err
	}
	if err := syncAll(upper); err != nil {
		return nil, err
	}
	if err := os.Rename(upper, p.base(id)); err != nil {
		return nil, err
	}
	if err := errors.Join(syncDir(p.base("")), syncDir(p.layout(name))); err != nil {
		return nil, err
	}
	return ids, p.mount(name)
}

func (p Pool) freezeTree(name string) ([]string, error) {
	if err := unmixed(p.image(name)); err != nil {
		return nil, err
	}
	id := newID()
	layout, err := p.makeLayout([]string{id}, p.image(name))
	if err != nil {
		return nil, err
	}
	undo := func() { _ = os.RemoveAll(layout); _ = os.Remove(p.base(id)) }
	if err := os.Mkdir(p.base(id), 0o755); err != nil {
		undo()
		return nil, err
	}
	// Does the file system do? Before anything is moved, that is found out.
	if m, err := mountLayers(layout, []string{p.image(name)}); err != nil {
		undo()
		return nil, err
	} else {
		_ = unix.Close(m)
	}
	if err := os.Rename(layout, p.layout(name)); err != nil {
		undo()
		return nil, err
	}
	if err := syncDir(p.layout("")); err != nil {
		return nil, err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, p.image(name), unix.AT_FDCWD, p.base(id), unix.RENAME_EXCHANGE); err != nil {
		_ = os.RemoveAll(p.layout(name))
		_ = os.Remove(p.base(id))
		return nil, &os.LinkError{Op: "exchange", Old: p.image(name), New: p.base(id), Err: err}
	}
	if err := errors.Join(syncDir(p.base("")), syncDir(string(p))); err != nil {
		return nil, err
	}
	return []string{id}, p.mount(name)
}

// Create makes the image called name over layers that Freeze returned. Before it
// can be seen, prepare may change it through the root that it is given.
func (p Pool) Create(name string, ids []string, prepare func(root int) error) error {
	f, err := p.hold()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	layout, err := p.makeLayout(ids, p.base(ids[0]))
	if err != nil {
		return err
	}
	fail := func(err error) error { _ = os.RemoveAll(layout); return err }
	if prepare != nil {
		m, err := mountLayers(layout, p.bases(ids))
		if err != nil {
			return fail(err)
		}
		err = prepare(m)
		_ = unix.Close(m)
		if err != nil {
			return fail(err)
		}
	}
	if err := unix.Renameat2(unix.AT_FDCWD, layout, unix.AT_FDCWD, p.layout(name), unix.RENAME_NOREPLACE); err != nil {
		return fail(&os.LinkError{Op: "rename", Old: layout, New: p.layout(name), Err: err})
	}
	if err := syncDir(p.layout("")); err != nil {
		return err
	}
	return p.mount(name)
}

func (p Pool) bases(ids []string) []string {
	var list []string
	for _, id := range ids {
		list = append(list, p.base(id))
	}
	return list
}

// Rename gives an image another name.
func (p Pool) Rename(name, newName string) error {
	f, err := p.hold()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	readOnly := mountedReadOnly(p.image(name))
	// The directory to mount on is there before the old one goes: the disk may be full.
	point, release, err := p.spareDir()
	if err != nil {
		return err
	}
	defer release()
	if err := p.detach(name); err != nil {
		return err
	}
	restore := func(err error) error {
		_ = os.Rename(point, p.image(name))
		return errors.Join(err, p.mount(name))
	}
	if err := unix.Renameat2(unix.AT_FDCWD, p.layout(name), unix.AT_FDCWD, p.layout(newName), unix.RENAME_NOREPLACE); err != nil {
		return restore(&os.LinkError{Op: "rename", Old: p.layout(name), New: p.layout(newName), Err: err})
	}
	if err := syncDir(p.layout("")); err != nil {
		return err
	}
	_ = os.Rename(point, p.image(newName)) // else mount makes one
	if err := p.mount(newName); err != nil {
		point = p.image(newName)
		if back := unix.Renameat2(unix.AT_FDCWD, p.layout(newName), unix.AT_FDCWD, p.layout(name), unix.RENAME_NOREPLACE); back != nil {
			return errors.Join(err, back)
		}
		return restore(err)
	}
	if !readOnly {
		return nil
	}
	return p.SetReadOnly(newName, true)
}

// spareDir makes a directory in the pool under a temporary name, which is held as long
// as it may be renamed. release removes it where it has not been.
func (p Pool) spareDir() (path string, release func(), err error) {
	path = filepath.Join(string(p), tempPrefix+newID())
	if err := os.Mkdir(path, 0o755); err != nil {
		return "", nil, err
	}
	held, err := os.Open(path)
	if err == nil {
		_ = unix.Flock(int(held.Fd()), unix.LOCK_EX|unix.LOCK_NB) // one that is taken for left over is made anew by mount
	}
	return path, func() {
		_ = held.Close() // nil where it could not be opened
		_ = os.Remove(path)
	}, nil
}

// Remove removes an image, and the layers that no other needs.
func (p Pool) Remove(name string) error {
	f, err := p.hold()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := p.detach(name); err != nil {
		return err
	}
	return p.drop(name)
}

// drop takes a layout away and removes it.
func (p Pool) drop(name string) error {
	temp := p.layout(tempPrefix + newID())
	if err := os.Rename(p.layout(name), temp); err != nil {
		return err
	}
	if err := syncDir(p.layout("")); err != nil {
		return err
	}
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	return p.collect()
}

// Replace puts the tree at path, which is complete and on the disk, in the place
// of the image's layers: it is a plain directory from then on.
func (p Pool) Replace(name, path string) error {
	f, err := p.hold()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := p.detach(name); err != nil {
		return err
	}
	// From here on a tree that lies at the image's name is the image.
	done := filepath.Join(p.layout(name), "replaced")
	if err := os.WriteFile(done, nil, 0o600); err != nil {
		return errors.Join(err, p.mount(name))
	}
	if err := syncDir(p.layout(name)); err != nil {
		return err
	}
	if err := os.Rename(path, p.image(name)); err != nil {
		return errors.Join(err, os.Remove(done), p.mount(name))
	}
	if err := syncDir(string(p)); err != nil {
		return err
	}
	return p.drop(name)
}

// collect removes the layers that no image lists, and what was being made. The
// caller holds the pool.
func (p Pool) collect() error {
	images, err := os.ReadDir(p.layout(""))
	if err != nil {
		return err
	}
	needed := map[string]bool{}
	for _, e := range images {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			if err := os.RemoveAll(p.layout(e.Name())); err != nil {
				return err
			}
			continue
		}
		ids, err := p.layers(e.Name())
		if err != nil {
			return err // nothing is removed as long as one does not know
		}
		for _, id := range ids {
			needed[id] = true
		}
	}
	bases, err := os.ReadDir(p.base(""))
	if err != nil {
		return err
	}
	for _, e := range bases {
		if !needed[e.Name()] {
			if err := os.RemoveAll(p.base(e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Recover completes what was interrupted, mounts all images that are kept as
// layers, and removes what none needs. It is for the start of the daemon.
func (p Pool) Recover() error {
	if _, err := os.Lstat(p.layout("")); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	f, err := p.hold()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	images, err := os.ReadDir(p.layout(""))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range images {
		if !strings.HasPrefix(e.Name(), tempPrefix) {
			if err := p.recoverOne(e.Name()); err != nil {
				errs = append(errs, fmt.Errorf("mount image %q: %w", e.Name(), err))
			}
		}
	}
	return errors.Join(append(errs, p.collect())...)
}

func (p Pool) recoverOne(name string) error {
	if mounted(p.image(name)) {
		return nil
	}
	ids, err := p.layers(name)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(p.image(name))
	full := err == nil && len(entries) > 0
	_, err = os.Lstat(filepath.Join(p.layout(name), "replaced"))
	switch replaced := err == nil; {
	case replaced && full:
		return p.drop(name)
	case replaced:
		if err := os.Remove(filepath.Join(p.layout(name), "replaced")); err != nil {
			return err
		}
	case full:
		if base, err := os.ReadDir(p.base(ids[0])); err == nil && len(base) == 0 && len(ids) == 1 {
			return os.RemoveAll(p.layout(name)) // it was about to be frozen, and is what it was
		}
		return fmt.Errorf("directory %q is not empty", p.image(name))
	}
	return p.mount(name)
}

// Ensure mounts the image at path if it is kept as layers and not mounted.
func Ensure(path string) error {
	p, name := Of(path)
	if !p.Has(name) || mounted(path) {
		return nil
	}
	f, err := p.hold()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return p.recoverOne(name)
}

// Layers returns how many trees lie below an image.
func (p Pool) Layers(name string) int {
	ids, _ := p.layers(name)
	return len(slices.Compact(ids))
}

// syncAll writes the file system of a directory.
func syncAll(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(dir.Fd())))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return dir.Sync()
}
