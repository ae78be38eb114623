package spawn

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"machined/internal/overlay"
	"machined/internal/pathlock"
	"machined/internal/treecopy"
	"machined/internal/vpick"
)

// SearchPath is where images are looked up by name, in this order (machinectl(1)).
var SearchPath = []string{
	"/etc/machines", "/run/machines", "/var/lib/machines", "/var/lib/container",
	"/usr/local/lib/machines", "/usr/lib/machines",
}

// stackSuffix ends the name of a directory that is a mount stack.
const stackSuffix = ".mstack"

// IsStack says whether an image that FindImage has found is a mount stack.
func IsStack(path string) bool { return strings.HasSuffix(path, stackSuffix) }

// FindImage looks an image up by its name: a directory NAME, a file NAME.raw, a
// mount stack NAME.mstack, or the newest entry of NAME.v, NAME.raw.v or
// NAME.mstack.v (systemd.v(7)).
func FindImage(name string) (path string, raw, ok bool) {
	for _, dir := range SearchPath {
		p := filepath.Join(dir, name)
		if newest, err := vpick.Newest(p+stackSuffix+".v", name, stackSuffix, true); err == nil {
			return filepath.Join(p+stackSuffix+".v", newest), false, true
		}
		if newest, err := vpick.Newest(p+".v", name, "", true); err == nil {
			return filepath.Join(p+".v", newest), false, true
		}
		if newest, err := vpick.Newest(p+".raw.v", name, ".raw", false); err == nil {
			return filepath.Join(p+".raw.v", newest), true, true
		}
		if st, err := os.Stat(p); err == nil {
			if st.IsDir() {
				return p, false, true
			}
			if st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0 {
				return p, true, true
			}
		}
		if st, err := os.Stat(p + ".raw"); err == nil && st.Mode().IsRegular() {
			return p + ".raw", true, true
		}
		if st, err := os.Stat(p + stackSuffix); err == nil && st.IsDir() {
			return p + stackSuffix, false, true
		}
	}
	return "", false, false
}

// ImageName is the machine name that an image's path stands for, "" for none.
func ImageName(path string, raw bool) string {
	base := filepath.Base(path)
	if base == "/" || base == "." {
		host, _ := os.Hostname()
		return CleanName(host)
	}
	if raw {
		base = strings.TrimSuffix(base, ".raw")
	}
	return CleanName(base)
}

// attachImage opens and locks the root of the machine and fills in the plan's
// Root. What it makes is undone by m.undo.
func (m *machine) attachImage(ctx context.Context) error {
	o := m.opts
	if o.Image != "" {
		return m.attachDisk(ctx)
	}
	if o.MStack != "" {
		return m.attachStack(ctx)
	}
	dir := o.Directory
	if o.Template != "" {
		if err := m.copyTemplate(ctx); err != nil {
			return err
		}
	}
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("open root directory %q: %w", dir, errors.Unwrap(err))
	}
	if resolved == "/" && !o.Ephemeral && o.Volatile != "yes" && o.Volatile != "state" && o.Volatile != "overlay" {
		return errors.New("Spawning container on root directory is not supported. Consider using --ephemeral, --volatile=yes or --volatile=state.")
	}
	if err := overlay.Ensure(resolved); err != nil {
		return fmt.Errorf("mount image %s: %w", dir, err)
	}
	m.root = resolved
	if err := m.checkTree(dir, resolved); err != nil {
		return err
	}
	lock, err := pathlock.Image(resolved, !o.ReadOnly && !o.Ephemeral && o.Volatile != "yes" && o.Volatile != "overlay" && resolved != "/")
	if errors.Is(err, pathlock.ErrBusy) {
		return fmt.Errorf("Directory tree %s is currently busy.", dir)
	}
	if err != nil && !errors.Is(err, unix.EROFS) {
		return err
	}
	if err == nil {
		m.oweLocks(lock.Files())
	}
	m.plan.Root.Path = resolved
	if o.Ephemeral {
		return m.ephemeral(resolved)
	}
	return nil
}

// checkTree refuses what can't be a machine, in stock's words.
func (m *machine) checkTree(shown, dir string) error {
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if st, err := root.Stat(); err != nil || !st.IsDir() {
		return fmt.Errorf("root directory %q: %w", shown, unix.ENOTDIR)
	}
	names := m.needs()
	if len(names) == 0 {
		return nil
	}
	for _, name := range names {
		fd, err := openIn(int(root.Fd()), name, unix.O_PATH)
		if err == nil {
			_ = unix.Close(fd)
			return nil
		}
	}
	return refusal(shown, m.opts.Boot())
}

func openIn(root int, name string, flags int) (int, error) {
	return unix.Openat2(root, name, &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// ephemeral lets all changes go to a directory beside the tree, or in /var/tmp
// where nothing can be put beside it, that goes away at the end. When the machine
// reboots they are there still.
func (m *machine) ephemeral(near string) error {
	if dir := m.kept.Overlay; dir != "" {
		m.plan.Root.Overlay = dir
		return cleanWork(dir)
	}
	var tree unix.Stat_t
	if err := unix.Stat(near, &tree); err != nil {
		return &os.PathError{Op: "stat", Path: near, Err: err}
	}
	var lastErr error
	for _, parent := range []string{filepath.Dir(near), "/var/tmp", "/var/lib/machines", filepath.Dir(PropagateDir)} {
		if err := upperParent(parent, near, uint64(tree.Dev)); err != nil {
			lastErr = err
			continue
		}
		dir, err := m.runDir(parent, ".#machine."+m.opts.Machine, 0o700)
		if err != nil {
			lastErr = err
			continue
		}
		m.keep()
		m.kept.Overlay, m.plan.Root.Overlay = dir, dir
		m.fresh = append(m.fresh, dir)
		return nil
	}
	return fmt.Errorf("make ephemeral copy: %w", lastErr)
}

// overlayMagic is OVERLAYFS_SUPER_MAGIC of linux/magic.h.
const overlayMagic = 0x794c7630

// upperParent refuses a directory in which the upper layer of an overlay over the
// tree can't lie: on an overlay, or within the tree itself.
func upperParent(parent, tree string, device uint64) error {
	if parent == filepath.Dir(PropagateDir) {
		if err := os.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(parent, &fs); err != nil {
		return &os.PathError{Op: "statfs", Path: parent, Err: err}
	}
	if fs.Type == overlayMagic {
		return fmt.Errorf("%s is on an overlay: %w", parent, unix.ENOTSUP)
	}
	var st unix.Stat_t
	if err := unix.Stat(parent, &st); err != nil {
		return &os.PathError{Op: "stat", Path: parent, Err: err}
	}
	if uint64(st.Dev) == device && (tree == "/" || parent == tree || strings.HasPrefix(parent, tree+"/")) {
		return fmt.Errorf("%s lies within %s: %w", parent, tree, unix.ENOTSUP)
	}
	return nil
}

// copyTemplate makes the root directory from the template when it is missing.
func (m *machine) copyTemplate(ctx context.Context) error {
	o := m.opts
	if _, err := os.Stat(o.Directory); err == nil {
		return nil
	}
	src := o.Template
	if !strings.Contains(src, "/") {
		p, raw, ok := FindImage(src)
		if !ok || raw || IsStack(p) {
			return fmt.Errorf("No image for machine '%s'.", src)
		}
		src = p
	}
	src, err := vpick.Resolve(src, "", true)
	if err != nil {
		return err
	}
	from, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("open template: %w", err)
	}
	defer from.Close()
	tmp, err := m.runDir(filepath.Dir(o.Directory), ".#template."+filepath.Base(o.Directory), 0o755)
	if err != nil {
		return fmt.Errorf("make root from template: %w", err)
	}
	to, err := os.Open(tmp)
	if err == nil {
		err = treecopy.Copy(ctx, from, to, treecopy.Options{})
		_ = to.Close()
	}
	if err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, o.Directory, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return fmt.Errorf("make %s from template %s: %w", o.Directory, src, err)
	}
	m.say("Populated %s from template %s.", o.Directory, src)
	return nil
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}
