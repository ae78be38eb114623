package oci

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"

	"machined/internal/netname"
	"machined/spawn/settings"
)

func (c *Config) linux(n node) error {
	var uids, gids *settings.PrivateUsers
	err := n.object(table{
		"namespaces":        c.namespaces,
		"uidMappings":       func(n node) error { return n.mapping(&uids) },
		"gidMappings":       func(n node) error { return n.mapping(&gids) },
		"timeOffsets":       unsupported,
		"devices":           func(n node) error { return n.each(c.device) },
		"netDevices":        c.netDevices,
		"cgroupsPath":       c.cgroupsPath,
		"resources":         c.resources,
		"intelRdt":          c.ignored,
		"memoryPolicy":      unsupported,
		"sysctl":            c.sysctl,
		"seccomp":           c.seccomp,
		"rootfsPropagation": c.propagation,
		"maskedPaths":       func(n node) error { return n.paths(&c.MaskedPaths) },
		"readonlyPaths":     func(n node) error { return n.paths(&c.ReadOnlyPaths) },
		"mountLabel":        c.label,
		"personality":       c.personality,
	})
	if err != nil {
		return err
	}
	if uids != nil && gids != nil && *uids != *gids {
		return n.errorf("uidMappings and gidMappings that differ are not supported")
	}
	if c.Users = uids; uids == nil {
		c.Users = gids
	}
	return nil
}

func (c *Config) ignored(n node) error {
	c.Warnings = append(c.Warnings, n.path+": is not supported, ignoring")
	return nil
}

func (c *Config) namespaces(n node) error {
	c.Namespaces = &Namespaces{}
	seen := map[string]bool{}
	err := n.each(func(n node) error {
		var kind, file string
		err := n.object(table{
			"type": func(n node) error { return n.text(&kind) },
			"path": func(n node) error { return n.absolute(&file) },
		}, "type")
		if err != nil {
			return err
		}
		if seen[kind] {
			return n.errorf("there are two namespaces of type %q", kind)
		}
		seen[kind] = true
		if file != "" && kind != "network" {
			return n.errorf("only a network namespace can have a path, not one of type %q", kind)
		}
		switch kind {
		case "pid":
			c.Namespaces.PID = true
		case "network":
			c.Namespaces.Network, c.Namespaces.NetworkPath = true, file
		case "ipc":
			c.Namespaces.IPC = true
		case "uts":
			c.Namespaces.UTS = true
		case "user":
			c.Namespaces.User = true
		case "cgroup":
			c.Namespaces.Cgroup = true
		case "mount":
		default:
			return n.errorf("type %q is no supported namespace (cgroup, ipc, mount, network, pid, user, uts are)", kind)
		}
		return nil
	})
	if err == nil && !seen["mount"] {
		return n.errorf("containers without a mount namespace aren't supported")
	}
	return err
}

// mapping is of IDs: one range, from 0 inside.
func (n node) mapping(to **settings.PrivateUsers) error {
	list, err := n.array()
	if err != nil || len(list) == 0 {
		return err
	}
	if len(list) > 1 {
		return n.errorf("more than one mapping is not supported")
	}
	var inside uint64
	u := settings.PrivateUsers{Mode: settings.UserFixed}
	number := func(to *uint32) func(node) error {
		return func(n node) error {
			v, err := n.unsigned(math.MaxUint32 - 1)
			*to = uint32(v)
			return err
		}
	}
	err = list[0].object(table{
		"containerID": func(n node) (err error) { inside, err = n.unsigned(math.MaxUint32); return err },
		"hostID":      number(&u.Base), "size": number(&u.Count),
	}, "containerID", "hostID", "size")
	switch {
	case err != nil:
		return err
	case inside != 0:
		return list[0].errorf("mappings that do not begin with 0 inside are not supported")
	case u.Count == 0:
		return list[0].errorf("size must be more than 0")
	case uint64(u.Base)+uint64(u.Count) > math.MaxUint32:
		return list[0].errorf("range %d of %d IDs goes beyond the last one", u.Base, u.Count)
	}
	*to = &u
	return nil
}

func (c *Config) device(n node) error {
	d := Device{Mode: 0o666}
	var kind string
	numbers, mode := 0, uint64(0)
	number := func(to *uint32, high uint64) func(node) error {
		return func(n node) error {
			numbers++
			v, err := n.unsigned(high)
			*to = uint32(v)
			return err
		}
	}
	err := n.object(table{
		"type":  func(n node) error { return n.text(&kind) },
		"path":  func(n node) error { return n.absolute(&d.Path) },
		"major": number(&d.Major, 1<<12-1), "minor": number(&d.Minor, 1<<20-1),
		"fileMode": func(n node) error {
			var err error
			mode, err = n.unsigned(0o177777)
			d.Mode = uint32(mode & 0o7777)
			return err
		},
		"uid": func(n node) error { return n.id(&d.UID) }, "gid": func(n node) error { return n.id(&d.GID) },
	}, "type", "path")
	if err != nil {
		return err
	}
	switch kind {
	case "c", "u":
		d.Type = 'c'
	case "b", "p":
		d.Type = kind[0]
	default:
		return n.errorf("type %q is no kind of device (b, c, u, p are)", kind)
	}
	// Some writers give the type of the file with the mode.
	types := map[byte]uint64{'c': 0o020000, 'b': 0o060000, 'p': 0o010000}
	if mode&^0o7777 != 0 && mode&^0o7777 != types[d.Type] {
		return n.errorf("fileMode %#o is not of a device of type %q", mode, kind)
	}
	if d.Type != 'p' && numbers != 2 {
		return n.errorf("major and minor are needed of a device")
	}
	c.Devices = append(c.Devices, d)
	return nil
}

// netDevices are links of the host that move into the machine.
func (c *Config) netDevices(n node) error {
	object, ok := n.value.(map[string]any)
	if !ok {
		return n.wrong("an object")
	}
	for host, v := range object {
		l := settings.Link{Host: host, Container: host}
		if err := n.field(host, v).object(table{"name": func(n node) error { return n.text(&l.Container) }}); err != nil {
			return err
		}
		if !netname.ValidIfname(host) || !netname.ValidIfname(l.Container) {
			return n.field(host, v).errorf("is no name of a network interface")
		}
		c.Interfaces = append(c.Interfaces, l)
	}
	slices.SortFunc(c.Interfaces, func(a, b settings.Link) int { return strings.Compare(a.Host, b.Host) })
	return nil
}

// slices of systemd are named by all their parents (systemd.slice(5)).
var sliceName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(-|[A-Za-z0-9:_.\\]+(-[A-Za-z0-9:_.\\]+)*)\.slice$`)
})

func (c *Config) cgroupsPath(n node) error {
	if err := n.text(&c.Slice); err != nil {
		return err
	}
	if c.Slice != "" && !sliceName().MatchString(c.Slice) {
		return n.errorf("%q is not the name of a slice unit", c.Slice)
	}
	return nil
}

var sysctlName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_*@:-]+)+$`)
})

func (c *Config) sysctl(n node) error {
	pairs, err := n.pairs()
	if err != nil {
		return err
	}
	for _, p := range pairs {
		if !sysctlName().MatchString(p.Key) {
			return n.errorf("%q is no name of a sysctl", p.Key)
		}
	}
	c.Sysctls = pairs
	return nil
}

// ownSysctls keeps those that belong to a namespace of the machine's own
// (namespaces(7), sysctl documentation of the kernel). Others would change the
// host: they are passed over with a warning, where stock sets none at all.
func (c *Config) ownSysctls() {
	ns := c.Namespaces
	if ns == nil {
		ns = &Namespaces{IPC: true, UTS: true}
	}
	ipc := []string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"}
	c.Sysctls = slices.DeleteFunc(c.Sysctls, func(s KeyValue) bool {
		own := false
		switch {
		case strings.HasPrefix(s.Key, "net."):
			own = ns.Network && ns.NetworkPath == ""
		case slices.Contains(ipc, s.Key), strings.HasPrefix(s.Key, "fs.mqueue."):
			own = ns.IPC
		case s.Key == "kernel.domainname", s.Key == "kernel.hostname":
			own = ns.UTS
		}
		if !own {
			c.Warnings = append(c.Warnings, fmt.Sprintf("linux.sysctl: %q belongs to no namespace of the machine's own, ignoring", s.Key))
		}
		return !own
	})
}

func (c *Config) propagation(n node) error {
	var s string
	if err := n.text(&s); err != nil {
		return err
	}
	s = strings.TrimPrefix(s, "r")
	if !slices.Contains([]string{"shared", "slave", "private", "unbindable", ""}, s) {
		return n.errorf("%q is no mount propagation (shared, slave, private, unbindable are)", s)
	}
	c.Propagation = s
	return nil
}

func (n node) paths(to *[]string) error {
	return n.each(func(n node) error {
		var p string
		err := n.absolute(&p)
		*to = append(*to, p)
		return err
	})
}

func (c *Config) personality(n node) error {
	var domain string
	err := n.object(table{
		"domain": func(n node) error { return n.text(&domain) },
		"flags": func(n node) error {
			list, err := n.array()
			if err == nil && len(list) > 0 {
				return unsupported(n)
			}
			return err
		},
	}, "domain")
	if err != nil {
		return err
	}
	names := map[string]string{"LINUX": "x86-64", "LINUX32": "x86"}
	if c.Personality = names[domain]; c.Personality == "" {
		return n.errorf("domain %q is not LINUX or LINUX32", domain)
	}
	return nil
}
