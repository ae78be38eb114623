package transfer

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"

	"machined/internal/sys"
	"machined/internal/unit"

	"golang.org/x/sys/unix"
)

// maxVolumes bounds the directories that an image may keep its data in.
const maxVolumes = 128

// makeRoom gives a stack being built the directory for changes, in which the image's
// volumes are there from the start. A stack that is read-only has a directory of its
// own for each volume, which is mounted on it.
func (p *ociPull) makeRoom(b *building, names, volumes []string) error {
	if len(volumes) > maxVolumes {
		p.logf(Warning, "The image has %d volumes, of which the first %d count.", len(volumes), maxVolumes)
		volumes = volumes[:maxVolumes]
	}
	if !p.ReadOnly {
		if err := os.Mkdir(filepath.Join(b.path, "rw"), 0o755); err != nil {
			return err
		}
	}
	for _, volume := range volumes {
		st, there := p.lookUp(names, volume)
		switch {
		case there && st.Mode&unix.S_IFMT != unix.S_IFDIR:
			p.logf(Warning, "Volume %s is no directory in the image: left out.", volume)
		case p.ReadOnly && !there:
			p.logf(Warning, "Volume %s is not in the image: left out.", volume)
		case p.ReadOnly:
			dir := filepath.Join(b.path, "bind@"+unit.Escape(strings.TrimPrefix(volume, "/")))
			if len(filepath.Base(dir)) > 255 {
				p.logf(Warning, "Volume %.80s has too long a name: left out.", volume)
				continue
			}
			if err := makeLike(dir, st); err != nil {
				return err
			}
		case !there:
			if err := p.makeVolume(filepath.Join(b.path, "rw", "data"), names, volume); err != nil {
				return err
			}
		}
	}
	return nil
}

// lookUp finds what the topmost layer that has it has at an absolute path.
func (p *ociPull) lookUp(names []string, name string) (st unix.Stat_t, there bool) {
	for i := len(names) - 1; i >= 0; i-- {
		f, err := sys.OpenHow(int(p.held[names[i]].Fd()), strings.TrimPrefix(name, "/"), &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW})
		if err != nil {
			continue
		}
		err = unix.Fstat(int(f.Fd()), &st)
		_ = f.Close()
		if err == nil {
			return st, !isWhiteout(st)
		}
	}
	return unix.Stat_t{Mode: 0o755}, false
}

// makeVolume makes a directory that the layers lack where changes to them go, those
// above it as the layers have them.
func (p *ociPull) makeVolume(data string, names []string, volume string) error {
	if err := os.Mkdir(data, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	for i := 1; i <= len(volume); i++ {
		if i < len(volume) && volume[i] != '/' {
			continue
		}
		part := path.Clean(volume[:i])
		st, there := p.lookUp(names, part)
		if there && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			p.logf(Warning, "Volume %s lies below what is no directory: left out.", volume)
			return nil
		}
		if err := makeLike(filepath.Join(data, part), st); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

func makeLike(dir string, st unix.Stat_t) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return errors.Join(os.Lchown(dir, int(st.Uid), int(st.Gid)), unix.Chmod(dir, st.Mode&0o7777))
}
