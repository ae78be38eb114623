package stage

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// maxHostFile bounds what is copied from the host's /etc.
const maxHostFile = 1 << 20

// timezone makes /etc/localtime follow the host's.
func (o *outer) timezone() error {
	a := o.plan.Timezone
	if err := o.follow("/etc/localtime", a); err != nil {
		o.warn("Failed to set up /etc/localtime, ignoring: %v", err)
	}
	return nil
}

// resolvConf makes /etc/resolv.conf follow the host's.
func (o *outer) resolvConf() error {
	if err := o.follow("/etc/resolv.conf", o.plan.ResolvConf); err != nil {
		o.warn("Failed to set up /etc/resolv.conf, ignoring: %v", err)
	}
	return nil
}

func (o *outer) follow(p string, a FileAction) error {
	if a.Mode == "" || a.Mode == "off" {
		return nil
	}
	if !o.root.exists(path.Dir(p)) {
		return nil
	}
	if a.Mode == "symlink" && o.hasZone(p, a.Zone) {
		return nil
	}
	// The root becomes read-only later, but nothing may be written to its file system.
	if a.ReadOnly && a.Mode != "bind" {
		return &os.PathError{Op: a.Mode, Path: p, Err: unix.EROFS}
	}
	o.asMachineRoot()
	defer o.asHost()
	switch a.Mode {
	case "delete":
		return o.remove(p)
	case "symlink":
		if o.root.exists("/usr/share/zoneinfo/" + a.Zone) {
			if err := o.remove(p); err != nil {
				return err
			}
			return o.root.symlink(a.Source, p)
		}
		a.Mode, a.Source = a.Fallback, "/etc/localtime"
		if a.Mode == "" {
			return nil
		}
		return o.follow(p, a)
	case "copy":
		fd, err := o.root.open(p, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err == nil {
			var st unix.Stat_t
			err = unix.Fstat(fd, &st)
			_ = unix.Close(fd)
			if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
				return nil // a symlink is left alone
			}
		}
		return o.copyHost(p, a.Source)
	case "replace":
		return o.copyHost(p, a.Source)
	case "bind":
		o.asHost()
		return o.bindFollow(p, a)
	}
	return fmt.Errorf("mode %q is unknown", a.Mode)
}

// hasZone tells whether link p names the zone already, in whatever way.
func (o *outer) hasZone(p, zone string) bool {
	fd, err := o.root.open(p, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return false
	}
	target := string(buf[:n])
	return target == "/usr/share/zoneinfo/"+zone || target == "../usr/share/zoneinfo/"+zone
}

func (o *outer) copyHost(p, source string) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() > maxHostFile || !st.Mode().IsRegular() {
		return fmt.Errorf("copy %s: not a regular file of at most %d bytes", source, maxHostFile)
	}
	data := make([]byte, st.Size())
	n, err := f.Read(data)
	if err != nil && st.Size() > 0 {
		return err
	}
	return o.root.write(p, data[:n], 0o644)
}

// bindFollow binds onto what p points to inside the machine; onto p itself where it
// is a link to nothing, or to itself.
func (o *outer) bindFollow(p string, a FileAction) error {
	src, err := unix.Open(a.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: a.Source, Err: err}
	}
	defer unix.Close(src)
	target, err := o.root.open(p, unix.O_PATH, 0)
	switch {
	case err == nil:
	case (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP)) && o.root.lexists(p):
		target, err = o.root.open(p, unix.O_PATH|unix.O_NOFOLLOW, 0)
	case errors.Is(err, unix.ENOENT) && a.ReadOnly:
		return nil // no place for it
	default:
		o.asMachineRoot()
		target, err = o.root.node(p)
		o.asHost()
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	m, err := cloneTree(src, false)
	if err != nil {
		return err
	}
	defer unix.Close(m)
	if err := setAttr(m, false, unix.MountAttr{Attr_set: readonly | nosuid | nodev}); err != nil {
		return err
	}
	return attach(m, target)
}

func (o *outer) remove(p string) error {
	dir, err := o.root.open(path.Dir(p), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	err = unix.Unlinkat(dir, path.Base(p), 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// journal binds the host's journal directory of this machine into it.
func (o *outer) journal() error {
	j := o.plan.Journal
	if o.plan.JournalDir {
		o.asMachineRoot()
		_ = o.root.mkdir("/var/log/journal", 0o755) // without, journald keeps it in memory
		o.asHost()
	}
	if j == nil || j.Mode != "host" {
		return nil
	}
	err := func() error {
		dest := "/var/log/journal/" + j.ID
		place := func() (int, error) { return o.root.dir(dest, 0o755) }
		if o.plan.Root.ReadOnly && o.plan.Root.Volatile == "no" { // as resolv.conf, see follow
			place = func() (int, error) { return o.root.open(dest, unix.O_PATH|unix.O_DIRECTORY, 0) }
		}
		o.asMachineRoot()
		target, err := place()
		o.asHost()
		if err != nil {
			return err
		}
		defer unix.Close(target)
		src, err := unix.Open(j.Host, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(src)
		m, err := cloneTree(src, false)
		if err != nil {
			return err
		}
		defer unix.Close(m)
		if o.shifted && o.base != 0 {
			fd, err := usernsFD([]Mapping{{0, o.base, o.plan.Userns.Count}})
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			err = o.setMap(m, fd, false)
			if errors.Is(err, unix.EINVAL) {
				// A file system that can't be mapped. The directory has nothing but
				// this machine's journal, so that it may change hands.
				err = o.shiftDir(src, o.base)
			}
			if err != nil {
				return err
			}
		}
		return attach(m, target)
	}()
	if err == nil {
		return nil
	}
	if j.Try {
		o.warn("Failed to bind the journal of %s, ignoring: %v", j.ID, err)
		return nil
	}
	return fmt.Errorf("bind journal %s: %w", j.Host, err)
}
