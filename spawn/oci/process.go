package oci

import (
	"math"
	"strings"

	"machined/internal/caps"
	"machined/spawn/settings"
)

func (c *Config) process(n node) error {
	return n.object(table{
		"terminal":        func(n node) error { return n.boolean(pointer(&c.Terminal)) },
		"consoleSize":     c.consoleSize,
		"cwd":             func(n node) error { return n.absolute(&c.Cwd) },
		"env":             c.env,
		"args":            c.args,
		"commandLine":     unsupported,
		"rlimits":         func(n node) error { return n.each(c.rlimit) },
		"capabilities":    c.capabilities,
		"noNewPrivileges": func(n node) error { return n.boolean(pointer(&c.NoNewPrivs)) },
		"oomScoreAdj":     c.oomScore,
		"user":            c.user,
		"apparmorProfile": c.label,
		"selinuxLabel":    c.label,
		"scheduler":       unsupported,
		"ioPriority":      unsupported,
		"execCPUAffinity": unsupported,
	})
}

// label is of a security module that a machine's process is not given to.
func (c *Config) label(n node) error {
	var s string
	if err := n.text(&s); err != nil {
		return err
	}
	if s != "" {
		c.Warnings = append(c.Warnings, n.path+": labels are not set, ignoring")
	}
	return nil
}

func (c *Config) consoleSize(n node) error {
	side := func(to *uint16) func(node) error {
		return func(n node) error {
			v, err := n.unsigned(math.MaxUint16)
			*to = uint16(v)
			return err
		}
	}
	return n.object(table{"height": side(&c.Rows), "width": side(&c.Cols)}, "height", "width")
}

// assignment is NAME=VALUE (environ(7)).
func (n node) assignment() (string, error) {
	var s string
	if err := n.text(&s); err != nil {
		return "", err
	}
	if i := strings.IndexByte(s, '='); i < 1 {
		return "", n.errorf("%q is not an environment assignment NAME=VALUE", s)
	}
	return s, nil
}

func (c *Config) env(n node) error {
	return n.each(func(n node) error {
		s, err := n.assignment()
		c.Env = append(c.Env, s)
		return err
	})
}

func (c *Config) args(n node) error {
	if err := n.texts(&c.Args); err != nil {
		return err
	}
	if len(c.Args) == 0 || c.Args[0] == "" {
		return n.errorf("has no program to run")
	}
	return nil
}

func (c *Config) rlimit(n node) error {
	var kind string
	var l settings.Limit
	value := func(to *uint64) func(node) error {
		return func(n node) (err error) { *to, err = n.unsigned(math.MaxUint64); return err }
	}
	err := n.object(table{
		"type": func(n node) error { return n.text(&kind) }, "soft": value(&l.Soft), "hard": value(&l.Hard),
	}, "type", "soft", "hard")
	if err != nil {
		return err
	}
	name, ok := strings.CutPrefix(kind, "RLIMIT_")
	if !ok {
		return n.errorf("type %q does not begin with RLIMIT_", kind)
	}
	if _, ok := settings.LimitResource(name); !ok {
		return n.errorf("type %q is no resource limit", kind)
	}
	if _, dup := c.Limits[name]; dup {
		return n.errorf("%s is limited twice", kind)
	}
	if l.Soft > l.Hard {
		return n.errorf("soft limit %d of %s is above the hard limit %d", l.Soft, kind, l.Hard)
	}
	c.Limits[name] = l
	return nil
}

func (c *Config) capabilities(n node) error {
	c.Caps = &Capabilities{}
	set := func(to *uint64) func(node) error {
		return func(n node) error {
			return n.each(func(n node) error {
				var name string
				if err := n.text(&name); err != nil {
					return err
				}
				bit, err := caps.Parse(name)
				if err != nil || !strings.HasPrefix(name, "CAP_") || strings.ContainsAny(name, " ,") {
					return n.errorf("%q is no capability", name)
				}
				*to |= bit
				return nil
			})
		}
	}
	return n.object(table{
		"bounding": set(&c.Caps.Bounding), "effective": set(&c.Caps.Effective), "inheritable": set(&c.Caps.Inheritable),
		"permitted": set(&c.Caps.Permitted), "ambient": set(&c.Caps.Ambient),
	})
}

func (c *Config) oomScore(n node) error {
	v, err := n.integer(-1000, 1000)
	*pointer(&c.OOMScore) = int(v)
	return err
}

// id is a UID or GID; (uid_t) -1 is none (credentials(7)).
func (n node) id(to *uint32) error {
	v, err := n.unsigned(math.MaxUint32 - 1)
	*to = uint32(v)
	return err
}

func (c *Config) user(n node) error {
	c.User = &User{}
	return n.object(table{
		"uid": func(n node) error { return n.id(&c.User.UID) },
		"gid": func(n node) error { return n.id(&c.User.GID) },
		"umask": func(n node) error {
			v, err := n.unsigned(0o777)
			*pointer(&c.User.Umask) = uint32(v)
			return err
		},
		"additionalGids": func(n node) error {
			return n.each(func(n node) error {
				var id uint32
				err := n.id(&id)
				c.User.Groups = append(c.User.Groups, id)
				return err
			})
		},
	}, "uid", "gid")
}

func (c *Config) mount(n node) error {
	var m Mount
	err := n.object(table{
		"destination": func(n node) error { return n.absolute(&m.Destination) },
		"type":        func(n node) error { return n.text(&m.Type) },
		"source":      func(n node) error { return n.text(&m.Source) },
		"options":     func(n node) error { return n.texts(&m.Options) },
		"uidMappings": unsupported,
		"gidMappings": unsupported,
	}, "destination")
	if err != nil {
		return err
	}
	if m.Destination == "/" {
		return n.errorf("destination is the root, which \"root\" describes")
	}
	c.Mounts = append(c.Mounts, m)
	return nil
}

// Bind tells whether the mount shows something of the host.
func (m Mount) Bind() bool {
	for _, o := range m.Options {
		if o == "bind" || o == "rbind" {
			return true
		}
	}
	return m.Type == "" || m.Type == "bind" || m.Type == "none"
}
