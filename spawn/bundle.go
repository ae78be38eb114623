package spawn

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"machined/internal/seccomp"
	"machined/spawn/oci"
	"machined/spawn/stage"
)

// apiPlaces are the mount points that every machine has its own things at; what
// a bundle has for them is passed over, as in stock.
var apiPlaces = []string{
	"/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console",
	"/sys/fs/cgroup", "/sys/fs/selinux", "/proc/sys", "/run/host",
}

// planBundle adds to the plan what only an OCI bundle can ask for.
func (m *machine) planBundle() error {
	b, p := m.opts.Bundle, &m.plan
	if b == nil {
		return nil
	}
	p.NoHome = true
	p.Root.ReadOnlyLate = true // as other engines do
	if u := b.User; u != nil {
		p.UIDSet, p.ExtraGroups, p.Umask = &stage.IDs{UID: u.UID, GID: u.GID}, u.Groups, u.Umask
	}
	if c := b.Caps; c != nil {
		p.OCICaps = &stage.CapSets{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable,
			Permitted: c.Permitted, Ambient: c.Ambient,
		}
		p.CapBounding, p.CapAmbient = c.Bounding, c.Ambient
	}
	for _, s := range b.Sysctls {
		p.Sysctls = append(p.Sysctls, stage.KeyValue{Key: s.Key, Value: s.Value})
	}
	p.Domainname, p.Propagation = b.Domainname, propagations[b.Propagation]
	p.MaskedPaths, p.ROPaths = b.MaskedPaths, b.ReadOnlyPaths
	if p.Console.PTY && b.Rows > 0 && b.Cols > 0 {
		p.Console.Rows, p.Console.Cols = b.Rows, b.Cols
	}
	for _, d := range b.Devices {
		types := map[byte]uint32{'b': unix.S_IFBLK, 'c': unix.S_IFCHR, 'p': unix.S_IFIFO}
		p.Nodes = append(p.Nodes, stage.Node{
			Path: d.Path, Mode: types[d.Type] | d.Mode&0o7777, Device: unix.Mkdev(d.Major, d.Minor), UID: d.UID, GID: d.GID,
		})
	}
	for _, mount := range b.Mounts {
		if slices.Contains(apiPlaces, mount.Destination) {
			continue
		}
		planned, err := m.bundleMount(mount)
		if err != nil {
			return err
		}
		p.Mounts = append(p.Mounts, planned)
	}
	return nil
}

var propagations = map[string]uint64{
	"shared": unix.MS_SHARED, "slave": unix.MS_SLAVE, "private": unix.MS_PRIVATE, "unbindable": unix.MS_UNBINDABLE,
}

func (m *machine) bundleMount(from oci.Mount) (stage.Mount, error) {
	to := stage.Mount{Kind: "arbitrary", Dest: from.Destination, FSType: from.Type, Recursive: true}
	bind := from.Bind()
	var rest []string
	for _, o := range from.Options {
		flag, isPropagation := propagations[strings.TrimPrefix(o, "r")]
		switch {
		case o == "" || o == "rbind":
		case o == "bind":
			to.Recursive = false
		case isPropagation:
			to.Propagation = flag
		case bind && o == "ro":
			to.ReadOnly = true
		case strings.Contains(o, ","):
			return to, fmt.Errorf("mount on %s: option %q has a comma", from.Destination, o)
		default:
			rest = append(rest, o)
		}
	}
	to.Options = strings.Join(rest, ",")
	source := stage.Source{Path: from.Source}
	if bind {
		to.Kind, to.FSType = "bind", ""
		if from.Source == "" {
			var err error
			if source.Path, err = m.tempDir(); err != nil {
				return to, err
			}
		}
	} else if source.Path == "" {
		source.Path = from.Type
	}
	to.Sources = []stage.Source{source}
	return to, nil
}

// bundleFilter is the bundle's own system call filter; without one there is the
// usual.
func (m *machine) bundleFilter() (bool, error) {
	if m.opts.Bundle == nil || m.opts.Bundle.Seccomp == nil {
		return false, nil
	}
	filter, err := seccomp.CompileRules(*m.opts.Bundle.Seccomp)
	if err != nil {
		return true, err
	}
	m.plan.Seccomp = append(m.plan.Seccomp, filterBytes(filter))
	return true, nil
}

// bundleCgroup writes the files that the bundle names into the payload's cgroup.
func (m *machine) bundleCgroup() error {
	if m.opts.Bundle == nil || m.cgroup == "" {
		return nil
	}
	for _, f := range m.opts.Bundle.Unified {
		if err := writeFile(filepath.Join(m.cgroup, f.Key), f.Value); err != nil {
			return fmt.Errorf("set %s of the cgroup to %q: %w", f.Key, f.Value, err)
		}
	}
	return nil
}

// DeviceProperties are a bundle's device rules as unit properties. A later rule
// counts for more there than an earlier one; what is not allowed is forbidden
// here anyway, but for the nodes that every machine has.
func DeviceProperties(rules []oci.DeviceRule) []string {
	var out []string
	groups := map[string]string{}
	for _, r := range rules {
		if !r.Allow {
			continue
		}
		if r.Type == "a" {
			out = append(out, "DevicePolicy=auto")
			continue
		}
		class := map[string]string{"b": "block", "c": "char"}[r.Type]
		var name string
		switch {
		case r.Major < 0:
			name = class + "-*"
		case r.Minor >= 0:
			name = fmt.Sprintf("/dev/%s/%d:%d", class, r.Major, r.Minor)
		default:
			if len(groups) == 0 {
				groups = deviceGroups()
			}
			group, ok := groups[class+strconv.FormatInt(r.Major, 10)]
			if !ok {
				continue // no driver: there is nothing to use
			}
			name = class + "-" + group
		}
		out = append(out, "DeviceAllow="+name+" "+r.Access)
	}
	return out
}

// deviceGroups are the names of majors (proc(5), /proc/devices).
func deviceGroups() map[string]string {
	f, err := os.Open("/proc/devices")
	if err != nil {
		return nil
	}
	defer f.Close()
	return parseDeviceGroups(f)
}

func parseDeviceGroups(r io.Reader) map[string]string {
	out := map[string]string{}
	class := ""
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		switch line := lines.Text(); {
		case strings.HasPrefix(line, "Character"):
			class = "char"
		case strings.HasPrefix(line, "Block"):
			class = "block"
		default:
			if fields := strings.Fields(line); len(fields) == 2 {
				out[class+fields[0]] = fields[1]
			}
		}
	}
	return out
}
