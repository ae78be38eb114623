// Package oci reads the configuration of an OCI runtime bundle, config.json of
// the Open Container Initiative's runtime specification (versions 1.0 to 1.3),
// and says what it asks for in the spawner's terms.
//
// It is pure: it looks at no tree and no host. A bundle is trusted as a command
// line is; that a value is of the wrong type, out of range, unknown or can't be
// had is an error that names the element.
package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"golang.org/x/sys/unix"

	"machined/internal/seccomp"
	"machined/spawn/settings"
)

// Config is what a bundle asks for. Pointers are nil, strings and lists empty,
// where it says nothing.
type Config struct {
	Root       string // as in the file: beside it unless absolute
	ReadOnly   *bool
	Hostname   string
	Domainname string
	Mounts     []Mount

	// Of the process.

	Args       []string
	Env        []string // NAME=VALUE
	Cwd        string   // absolute
	User       *User
	Terminal   *bool
	Rows, Cols uint16
	NoNewPrivs *bool
	OOMScore   *int
	Limits     map[string]settings.Limit // by name: NOFILE...
	Caps       *Capabilities

	// Of Linux.

	Namespaces    *Namespaces
	Users         *settings.PrivateUsers
	Interfaces    []settings.Link
	Devices       []Device
	Slice         string
	Properties    []string // NAME=VALUE of units (systemd.resource-control(5))
	DeviceRules   []DeviceRule
	Unified       []KeyValue // files of the payload's cgroup
	Sysctls       []KeyValue
	Seccomp       *seccomp.Rules
	Propagation   string // shared, slave, private or unbindable; r... is the same
	MaskedPaths   []string
	ReadOnlyPaths []string
	Personality   string

	// Warnings are of what is in the file and will not be done.
	Warnings []string
}

// KeyValue is one setting.
type KeyValue struct{ Key, Value string }

// User is who the process runs as, by numbers.
type User struct {
	UID, GID uint32
	Groups   []uint32
	Umask    *uint32
}

// Capabilities are the process's five sets (capabilities(7)).
type Capabilities struct{ Bounding, Effective, Inheritable, Permitted, Ambient uint64 }

// Mount is one mount, in the file's order.
type Mount struct {
	Destination  string // absolute
	Type, Source string
	Options      []string
}

// Namespaces are those that the machine gets, the others are the host's.
type Namespaces struct {
	PID, Network, IPC, UTS, User, Cgroup bool
	NetworkPath                          string // of one that is there
}

// Device is a node to make.
type Device struct {
	Path         string
	Type         byte // 'b', 'c', 'p'
	Major, Minor uint32
	Mode         uint32
	UID, GID     uint32
}

// DeviceRule lets the machine use devices. -1 is any number.
type DeviceRule struct {
	Allow        bool
	Type         string // a, b or c
	Major, Minor int64
	Access       string
}

// maxSize bounds the file, in bytes: real ones have some 20 KiB.
const maxSize = 4 << 20

// Load reads config.json of a bundle's directory. Root becomes absolute.
func Load(dir string) (*Config, error) {
	name := filepath.Join(dir, "config.json")
	// Not to wait for the writer of a pipe.
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: is not a regular file", name)
	}
	c, err := Parse(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if !filepath.IsAbs(c.Root) {
		c.Root = filepath.Join(dir, c.Root)
	}
	for i, m := range c.Mounts {
		if m.Source != "" && m.Bind() && !filepath.IsAbs(m.Source) {
			c.Mounts[i].Source = filepath.Join(dir, m.Source)
		}
	}
	return c, nil
}

// Parse reads the text of a config.json.
func Parse(r io.Reader) (*Config, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	switch {
	case err != nil:
		return nil, err
	case len(data) > maxSize:
		return nil, fmt.Errorf("is larger than %d bytes", maxSize)
	case len(data) == 0:
		return nil, errors.New("is empty")
	}
	var top any
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&top); err != nil {
		return nil, fmt.Errorf("is no JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("has more than one JSON value")
	}
	c := &Config{Limits: map[string]settings.Limit{}}
	return c, c.top(node{"", top})
}

// versions are those of the specification that are understood. Minor versions
// only add (runtime-spec, "Specification version"). Expressions are compiled when
// there is a bundle: this package is part of each start of a machine.
var versions = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^1\.[0-3]\.[0-9]+$`)
})

func (c *Config) top(n node) error {
	object, ok := n.value.(map[string]any)
	if !ok {
		return errors.New("is not an OCI bundle configuration: it must be an object with \"ociVersion\"")
	}
	v, ok := object["ociVersion"]
	if !ok {
		return errors.New("is not an OCI bundle configuration: \"ociVersion\" is missing")
	}
	// Before anything else: another version may have other elements.
	var version string
	if err := n.field("ociVersion", v).text(&version); err != nil {
		return err
	}
	if !versions().MatchString(version) {
		return fmt.Errorf("OCI bundle version not supported: %s (1.0.0 to 1.3.x are)", version)
	}
	err := n.object(table{
		"ociVersion":  nil,
		"process":     c.process,
		"root":        c.root,
		"hostname":    c.hostname,
		"domainname":  func(n node) error { return n.hostName(&c.Domainname) },
		"mounts":      func(n node) error { return n.each(c.mount) },
		"linux":       c.linux,
		"hooks":       c.hooks,
		"annotations": func(n node) error { _, err := n.pairs(); return err },
	}, "root")
	if err != nil {
		return err
	}
	if c.Namespaces != nil && c.Users != nil && !c.Namespaces.User {
		c.Users = nil
		c.Warnings = append(c.Warnings, "linux.uidMappings: there is no user namespace to have them, ignoring")
	}
	if c.Users == nil && c.Namespaces != nil && c.Namespaces.User {
		c.Users = &settings.PrivateUsers{Mode: settings.UserPick}
	}
	c.ownSysctls()
	return nil
}

func (c *Config) root(n node) error {
	err := n.object(table{
		"path":     func(n node) error { return n.text(&c.Root) },
		"readonly": func(n node) error { return n.boolean(pointer(&c.ReadOnly)) },
	}, "path")
	if err == nil && c.Root == "" {
		return n.field("path", nil).errorf("is empty")
	}
	return err
}

func (c *Config) hostname(n node) error { return n.hostName(&c.Hostname) }

func (n node) hostName(to *string) error {
	if err := n.text(to); err != nil {
		return err
	}
	if !settings.ValidHostname(*to) {
		return n.errorf("%q is not a valid host name", *to)
	}
	return nil
}

// pointer makes *to point to a new value.
func pointer[T any](to **T) *T {
	*to = new(T)
	return *to
}

// hooks are checked, and not run: they are a runtime's that calls the parts of a
// start one by one.
func (c *Config) hooks(n node) error {
	hook := func(n node) error {
		var name string
		err := n.object(table{
			"path": func(n node) error { return n.absolute(&name) },
			"args": func(n node) error { return n.texts(new([]string)) },
			"env":  func(n node) error { return n.each(func(n node) error { _, err := n.assignment(); return err }) },
			"timeout": func(n node) error {
				t, err := n.unsigned(1 << 31)
				if err == nil && t == 0 {
					return n.errorf("must be more than 0 seconds")
				}
				return err
			},
		}, "path")
		if err == nil {
			c.Warnings = append(c.Warnings, n.path+": hooks are not run, ignoring "+name)
		}
		return err
	}
	t := table{}
	for _, name := range []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"} {
		t[name] = func(n node) error { return n.each(hook) }
	}
	return n.object(t)
}
