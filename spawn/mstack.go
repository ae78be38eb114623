package spawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"machined/internal/gpt"
	"machined/internal/pathlock"
	"machined/internal/unit"
	"machined/internal/vpick"
	"machined/spawn/stage"
)

// stackEntry is one name in a mount stack (systemd.mstack(7)).
type stackEntry struct {
	kind string // layer, bind, robind, tmpfs, rw, root
	// arg orders layers, or is the absolute place of a bind.
	arg  string
	path string
	disk bool // a disk image
}

// parseStackName reads the name of an entry. It is false for hidden files.
func parseStackName(name string) (e stackEntry, ok bool, err error) {
	if strings.HasPrefix(name, ".") {
		return e, false, nil
	}
	stem := strings.TrimSuffix(name, ".v")
	stem, e.disk = strings.CutSuffix(stem, ".raw")
	kind, arg, has := strings.Cut(stem, "@")
	bad := fmt.Errorf("%q in mount stack is none of layer@, bind@, robind@, tmpfs@, rw and root", name)
	switch e.kind = kind; kind {
	case "rw", "root":
		if has || e.disk || stem != name {
			return e, false, bad
		}
	case "layer":
		if e.arg = arg; arg == "" {
			return e, false, bad
		}
	case "bind", "robind", "tmpfs":
		place, valid := unit.Unescape(arg)
		place = "/" + place
		if !valid || place == "/" || path.Clean(place) != place || strings.ContainsRune(place, 0) || kind == "tmpfs" && stem != name {
			return e, false, fmt.Errorf("%q in mount stack: %q is no escaped path of a mount point", name, arg)
		}
		e.arg = place
	default:
		return e, false, bad
	}
	return e, true, nil
}

// readStack lists a mount stack: layers from the bottom up, binds by their place.
func readStack(dir string) ([]stackEntry, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []stackEntry
	for _, n := range names {
		e, ok, err := parseStackName(n.Name())
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		suffix := ""
		if e.disk {
			suffix = ".raw"
		}
		p, err := vpick.Resolve(filepath.Join(dir, n.Name()), suffix, !e.disk)
		if err != nil {
			return nil, err
		}
		if e.path, err = filepath.EvalSymlinks(p); err != nil {
			return nil, fmt.Errorf("%q in mount stack: %w", n.Name(), err)
		}
		st, err := os.Stat(e.path)
		if err != nil {
			return nil, err
		}
		if e.disk == st.IsDir() {
			return nil, fmt.Errorf("%q in mount stack: a name in .raw is a disk image, any other a directory", n.Name())
		}
		for _, other := range out {
			if other.kind == "layer" && e.kind == "layer" && other.arg == e.arg ||
				other.kind != "layer" && e.kind != "layer" && e.arg != "" && other.arg == e.arg {
				return nil, fmt.Errorf("%q in mount stack: there is another one for %q", n.Name(), e.arg)
			}
		}
		out = append(out, e)
	}
	slices.SortStableFunc(out, func(a, b stackEntry) int {
		if a.kind == "layer" && b.kind == "layer" {
			return vpick.Compare(a.arg, b.arg)
		}
		return strings.Compare(a.arg, b.arg)
	})
	return out, nil
}

// attachStack turns a mount stack into the plan's root.
func (m *machine) attachStack(ctx context.Context) error {
	o := m.opts
	dir, err := filepath.EvalSymlinks(o.MStack)
	if err != nil {
		return fmt.Errorf("open mount stack %q: %w", o.MStack, errors.Unwrap(err))
	}
	m.root = dir
	lock, err := pathlock.Image(dir, !o.ReadOnly && o.Volatile == "no")
	if errors.Is(err, pathlock.ErrBusy) {
		return fmt.Errorf("Mount stack %s is currently busy.", o.MStack)
	}
	if err != nil && !errors.Is(err, unix.EROFS) {
		return err
	}
	if err == nil {
		m.oweLocks(lock.Files())
	}
	entries, err := readStack(dir)
	if err != nil {
		return err
	}
	s := &stage.Stack{}
	var base, layers []stage.Layer
	for _, e := range entries {
		var l stage.Layer
		switch {
		case e.kind == "tmpfs" || e.kind == "rw":
		case e.disk:
			l, err = m.diskLayer(ctx, e, e.kind != "bind" || o.ReadOnly)
		default:
			l.Path = e.path
		}
		if err != nil {
			return fmt.Errorf("mount stack %s: %w", o.MStack, err)
		}
		switch e.kind {
		case "root":
			base = append(base, l)
		case "layer":
			layers = append(layers, l)
		case "rw":
			s.Writable = e.path
		default:
			s.Mounts = append(s.Mounts, stage.StackMount{
				Layer: l, Dest: path.Clean(e.arg), Memory: e.kind == "tmpfs", ReadOnly: e.kind == "robind" || o.ReadOnly,
			})
		}
	}
	s.Layers = append(base, layers...)
	if len(s.Layers) == 0 {
		return fmt.Errorf("mount stack %s has no layer", o.MStack)
	}
	r := &m.plan.Root
	r.Stack, r.Shown = s, o.MStack
	if o.Boot() {
		r.Need = m.needs() // a single program needs no OS around it
	}
	if s.Writable == "" && o.Volatile == "no" {
		r.ReadOnly = true
	}
	return nil
}

// diskLayer attaches the root of a disk image.
func (m *machine) diskLayer(ctx context.Context, e stackEntry, readOnly bool) (stage.Layer, error) {
	f, readOnly, err := openDisk(e.path, readOnly)
	if err != nil {
		return stage.Layer{}, err
	}
	defer f.Close()
	c, err := m.contents(f, e.path)
	if err != nil {
		return stage.Layer{}, fmt.Errorf("image %q: %w", e.path, err)
	}
	p, ok := c.found["root"]
	if !ok {
		return stage.Layer{}, fmt.Errorf("image %q: %w", e.path, gpt.ErrNoRoot)
	}
	part, err := m.attachPartition(ctx, f, c, gpt.Mount{Partition: p, Designator: "root", Where: "/"}, readOnly)
	if err != nil {
		return stage.Layer{}, fmt.Errorf("image %q: %w", e.path, err)
	}
	return stage.Layer{Device: part.Device, FSType: part.FSType, ReadOnly: part.ReadOnly}, nil
}
