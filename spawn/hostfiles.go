package spawn

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"machined/spawn/settings"
	"machined/spawn/stage"
)

const goarch = runtime.GOARCH

// Directories of the host that belong to running machines.
const (
	PropagateDir  = "/run/systemd/nspawn/propagate"
	UnixExportDir = "/run/systemd/nspawn/unix-export"
)

func hostOSRelease() string {
	for _, name := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		if _, err := os.Stat(name); err == nil {
			return name
		}
	}
	return ""
}

// hostEnv tells the payload which operating system the host runs.
func hostEnv() []string {
	name := hostOSRelease()
	if name == "" {
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	names := map[string]string{"ID": "id", "VERSION_ID": "version_id", "BUILD_ID": "build_id", "VARIANT_ID": "variant_id"}
	var out []string
	lines := bufio.NewScanner(io.LimitReader(f, 64<<10))
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), "=")
		if short := names[key]; ok && short != "" {
			words, err := settings.SplitWords(value)
			if err == nil && len(words) == 1 {
				out = append(out, "container_host_"+short+"="+words[0])
			}
		}
	}
	return out
}

// imageID reads /etc/machine-id of the image without leaving it.
func (m *machine) imageID() ([16]byte, bool) {
	if m.plan.Root.Path == "" || m.opts.Volatile == "yes" { // then its /etc is not seen
		return [16]byte{}, false
	}
	if dir := m.plan.Root.Overlay; dir != "" { // after a reboot the machine may have written one
		if upper, err := unix.Open(dir+"/upper", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err == nil {
			defer unix.Close(upper)
			if id, ok := readID(upper); ok {
				return id, true
			}
		}
	}
	root, err := unix.Open(m.plan.Root.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return [16]byte{}, false
	}
	defer unix.Close(root)
	return readID(root)
}

// readID reads /etc/machine-id below a root without leaving it.
func readID(root int) ([16]byte, bool) {
	fd, err := openIn(root, "etc/machine-id", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return [16]byte{}, false
	}
	f := os.NewFile(uintptr(fd), "machine-id")
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return [16]byte{}, false
	}
	return parseID(f)
}

func parseID(r io.Reader) ([16]byte, bool) {
	data, err := io.ReadAll(io.LimitReader(r, 64))
	if err != nil {
		return [16]byte{}, false
	}
	id, err := settings.ParseID(strings.TrimSpace(string(data)))
	return id, err == nil
}

func hostID() [16]byte {
	f, err := os.Open("/etc/machine-id")
	if err != nil {
		return [16]byte{}
	}
	defer f.Close()
	id, _ := parseID(f)
	return id
}

// followHost decides what becomes of the machine's resolv.conf and localtime.
func (m *machine) followHost() {
	o, p := m.opts, &m.plan
	// A root in memory, or with a layer there, has an /etc that can be written to.
	readOnly := p.Root.ReadOnly && p.Root.Volatile != "yes" || p.Root.Volatile == "state"
	p.ResolvConf = resolvConf(o.ResolvConf, o.PrivateNet, readOnly)
	p.Timezone = timezone(o.Timezone, readOnly)
}

const (
	hostResolv = "/etc/resolv.conf"
	stubResolv = "/run/systemd/resolve/stub-resolv.conf"
)

var resolvSources = map[string]string{
	"host": hostResolv, "static": "/usr/lib/systemd/resolv.conf",
	"uplink": "/run/systemd/resolve/resolv.conf", "stub": stubResolv,
}

func resolvConf(mode string, privateNet, readOnly bool) stage.FileAction {
	if mode == "auto" {
		real, err := filepath.EvalSymlinks(hostResolv)
		switch {
		case privateNet:
			mode = "off"
		case err == nil && real == stubResolv && readOnly:
			mode = "bind-stub"
		case err == nil && real == stubResolv:
			mode = "copy-stub"
		case err == nil && readOnly:
			mode = "bind-host"
		case err == nil:
			mode = "copy-host"
		case readOnly:
			mode = "off"
		default:
			mode = "delete"
		}
	}
	action, source, _ := strings.Cut(mode, "-")
	return stage.FileAction{Mode: action, Source: resolvSources[source], ReadOnly: readOnly}
}

func timezone(mode string, readOnly bool) stage.FileAction {
	const local = "/etc/localtime"
	target, err := os.Readlink(local)
	zone, isZone := "", false
	if err == nil {
		_, zone, isZone = strings.Cut(target, "/zoneinfo/")
	}
	_, exists := os.Stat(local)
	if mode == "auto" {
		switch {
		case exists != nil && readOnly, mode == "off":
			mode = "off"
		case exists != nil:
			mode = "delete"
		case readOnly:
			mode = "bind"
		case isZone:
			mode = "symlink"
		default:
			mode = "copy"
		}
	}
	if mode == "copy" {
		mode = "replace" // a link of the image's, too
	}
	a := stage.FileAction{Mode: mode, Source: local, ReadOnly: readOnly}
	if mode == "symlink" {
		if !isZone {
			return stage.FileAction{Mode: "off"}
		}
		a.Zone, a.Source, a.Fallback = zone, "../usr/share/zoneinfo/"+zone, "bind"
	}
	return a
}

// linkJournal makes the machine's journal visible on the host, or the host's
// directory for it visible in the machine.
func (m *machine) linkJournal() error {
	o := m.opts
	r := &m.plan.Root
	// The init's journal shall outlast it.
	m.plan.JournalDir = o.Boot() && o.LinkJournal != "no" && !o.Ephemeral && !r.ReadOnly && m.id != hostID()
	if o.Ephemeral || o.LinkJournal == "no" || o.LinkJournal == "guest" && (r.Path == "" || r.Volatile != "no") {
		return nil // nothing that lasts would be linked
	}
	err := m.tryLinkJournal()
	if err != nil && (o.JournalTry || o.LinkJournal == "auto") {
		m.warn("%v", err)
		return nil
	}
	return err
}

func (m *machine) tryLinkJournal() error {
	id := strings.ReplaceAll(m.plan.UUID, "-", "")
	if m.id == hostID() {
		return fmt.Errorf("Host and machine ids are equal (%s): refusing to link journals", id)
	}
	const hostJournal = "/var/log/journal"
	host := filepath.Join(hostJournal, id)
	mode := m.opts.LinkJournal
	if mode == "auto" {
		st, err := os.Lstat(host)
		switch {
		case err != nil:
			return nil
		case st.Mode()&os.ModeSymlink != 0:
			return m.followLink(host, id)
		case !st.IsDir():
			return nil
		}
		mode = "host"
	}
	if _, err := os.Stat(hostJournal); err != nil {
		if m.opts.JournalTry {
			return nil
		}
		return fmt.Errorf("link journal: %w", err)
	}
	switch mode {
	case "host":
		if st, err := os.Lstat(host); err == nil && st.Mode()&os.ModeSymlink != 0 {
			if err := os.Remove(host); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(host, 0o755); err != nil {
			return fmt.Errorf("link journal: %w", err)
		}
		m.plan.Journal = &stage.Journal{Mode: "host", Host: host, ID: id, Try: m.opts.JournalTry}
		return nil
	case "guest":
		inside := m.insideJournal(id)
		if m.plan.Root.ReadOnly {
			return fmt.Errorf("make journal directory %s: %w", inside, unix.EROFS)
		}
		if err := m.guestJournal(id); err != nil {
			return fmt.Errorf("make journal directory %s: %w", inside, err)
		}
		if old, err := os.Readlink(host); err == nil {
			if old == inside {
				return nil
			}
			_ = os.Remove(host)
		} else if err := os.Remove(host); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("link journal: %s exists and is not a symbolic link: %w", host, err)
		}
		return os.Symlink(inside, host)
	}
	return nil
}

// insideJournal is the machine's journal as the host sees it.
func (m *machine) insideJournal(id string) string {
	return filepath.Join(m.root, "var/log/journal", id)
}

// followLink has a link of the host's, from an earlier run, lead to something. One that is for
// another tree goes.
func (m *machine) followLink(host, id string) error {
	r := &m.plan.Root
	if r.Path == "" || r.ReadOnly || r.Volatile != "no" {
		return nil
	}
	if to, err := os.Readlink(host); err == nil && to == m.insideJournal(id) {
		return m.guestJournal(id)
	}
	return os.Remove(host)
}

// guestJournal makes var/log/journal/ID in the tree, owned as the tree is, and
// follows no symlink of the image out of it.
func (m *machine) guestJournal(id string) error {
	root, err := unix.Open(m.plan.Root.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return err
	}
	dir := root
	for _, name := range []string{"var", "log", "journal", id} {
		if err := unix.Mkdirat(dir, name, 0o755); err == nil {
			if err := unix.Fchownat(dir, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
		} else if !errors.Is(err, unix.EEXIST) {
			return err
		}
		next, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(next)
		dir = next
	}
	return nil
}
