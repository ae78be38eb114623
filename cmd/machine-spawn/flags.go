package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"machined/internal/caps"
	"machined/internal/netname"
	"machined/internal/release"
	"machined/spawn"
	"machined/spawn/settings"
)

// errDone ends the program with success: help was asked for and given.
var errDone = errors.New("done")

// Groups of options that hide the same setting of a .nspawn file.
const (
	maskStart     = "start"
	maskMounts    = "mounts"
	maskNetwork   = "network"
	maskUserns    = "userns"
	maskCaps      = "capabilities"
	maskBindUser  = "bind-user"
	maskUserShell = "bind-user-shell"
	maskOwnership = "ownership"
)

// commandLine is what was said on the command line.
type commandLine struct {
	opts                    spawn.Options
	mask                    map[string]bool
	imagePath, settingsName string
	usersSaid               bool // a settings file says which user namespace
	fs                      *pflag.FlagSet
}

// parse reads the command line. Options end at the first argument that is none.
func parse(args []string) (*commandLine, error) {
	c := &commandLine{opts: spawn.Default(), mask: map[string]bool{}}
	c.fs = pflag.NewFlagSet("systemd-nspawn", pflag.ContinueOnError)
	c.fs.SetInterspersed(false)
	c.fs.SortFlags = false
	c.fs.Usage = func() {}
	c.imageFlags()
	c.execFlags()
	c.identityFlags()
	c.networkFlags()
	c.securityFlags()
	c.mountFlags()
	c.otherFlags()
	c.bindUserFlags()
	c.diskFlags()
	c.refusedFlags()
	args, err := c.unabbreviate(args)
	if err != nil {
		return nil, err
	}
	if err := c.fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) || errors.Is(err, errDone) {
			return nil, errDone
		}
		return nil, refusal(err)
	}
	if c.mask[maskUserShell] && len(c.opts.BindUsers) == 0 {
		return nil, errors.New("Cannot use --bind-user-shell= without --bind-user=")
	}
	c.opts.Args = c.fs.Args()
	if len(c.opts.Args) > 0 {
		c.mask[maskStart] = true
	}
	if err := c.environment(); err != nil {
		return nil, err
	}
	return c, nil
}

// value adds an option with an argument.
func (c *commandLine) value(name, short, arg, usage string, f func(string) error) {
	c.fs.VarP(&option{f: f, arg: arg}, name, short, usage)
}

// masked is value for an option that hides a setting of the file.
func (c *commandLine) masked(mask, name, short, arg, usage string, f func(string) error) {
	c.value(name, short, arg, usage, func(s string) error {
		c.mask[mask] = true
		return f(s)
	})
}

// optional lets the argument be left out.
func (c *commandLine) optional(name, value string) { c.fs.Lookup(name).NoOptDefVal = value }

// flag adds an option without an argument.
func (c *commandLine) flag(mask, name, short, usage string, f func() error) {
	c.fs.VarP(&option{f: func(s string) error {
		if s != "true" {
			return errors.New("takes no argument")
		}
		if mask != "" {
			c.mask[mask] = true
		}
		return f()
	}, flag: true}, name, short, usage)
	c.optional(name, "true")
}

// option is one option; it acts when it is met.
type option struct {
	f    func(string) error
	arg  string
	flag bool
}

func (o *option) String() string     { return "" }
func (o *option) Set(s string) error { return o.f(s) }
func (o *option) Type() string       { return o.arg }

func boolTo(to *bool) func(string) error {
	return func(s string) (err error) { *to, err = settings.ParseBool(s); return err }
}

func nonEmpty(to *string) func(string) error {
	return func(s string) error {
		if s == "" {
			return errors.New("empty argument")
		}
		*to = s
		return nil
	}
}

// absolute makes a path absolute from where we are.
func absolute(to *string) func(string) error {
	return func(s string) error {
		if s == "" {
			*to = ""
			return nil
		}
		if strings.ContainsRune(s, 0) {
			return errors.New("path has a NUL byte")
		}
		p, err := filepath.Abs(s)
		*to = p
		return err
	}
}

// words prints a list of values, for help.
func words(list []string) error {
	for _, w := range list {
		fmt.Println(w)
	}
	return errDone
}

// signalNames are the signals that have a name, in the order of their numbers.
func signalNames() (list []string) {
	for n := syscall.Signal(1); n < settings.RTMin; n++ {
		if name := unix.SignalName(n); name != "" {
			list = append(list, strings.TrimPrefix(name, "SIG"))
		}
	}
	for n := range settings.RTMax - settings.RTMin + 1 {
		list = append(list, fmt.Sprintf("RTMIN+%d", n))
	}
	return list
}

// unitTypes are the kinds of units that are not slices (systemd.unit(5)).
var unitTypes = []string{
	"service", "socket", "device", "mount", "automount", "swap", "target", "path", "timer", "scope",
}

func (c *commandLine) imageFlags() {
	o := &c.opts
	c.value("directory", "D", "PATH", "Root directory for the container", absolute(&o.Directory))
	c.value("template", "", "PATH", "Initialize root directory from template directory, if missing", func(s string) error {
		if !strings.Contains(s, "/") { // or empty: none
			o.Template = s
			return nil
		}
		return absolute(&o.Template)(s)
	})
	c.flag("ephemeral", "ephemeral", "x", "Run container with snapshot of root directory, and remove it after exit", func() error { o.Ephemeral = true; return nil })
	c.value("image", "i", "PATH", "Root file system disk image (or device node) for the container", absolute(&o.Image))
	c.value("oci-bundle", "", "PATH", "OCI bundle directory", absolute(&o.OCIBundle))
	c.masked("read-only", "read-only", "", "", "Mount the root directory read-only", boolTo(&o.ReadOnly))
	c.optional("read-only", "yes")
	c.masked("volatile", "volatile", "", "MODE", "Run the system in volatile mode", func(s string) (err error) {
		if s == "help" {
			return words(settings.VolatileModes)
		}
		o.Volatile, err = settings.ParseVolatile(s)
		return err
	})
	c.optional("volatile", "yes")
	c.masked("pivot-root", "pivot-root", "", "PATH[:PATH]", "Pivot root to given directory in the container", func(s string) (err error) {
		o.PivotNew, o.PivotOld, err = settings.ParsePivotRoot(s)
		return err
	})
}

func (c *commandLine) execFlags() {
	o := &c.opts
	c.flag(maskStart, "as-pid2", "a", "Maintain a stub init as PID1, invoke binary as PID2", func() error {
		if o.StartMode == settings.StartBoot {
			return errors.New("--boot and --as-pid2 may not be combined.")
		}
		o.StartMode = settings.StartPID2
		return nil
	})
	c.flag(maskStart, "boot", "b", "Boot up full system (i.e. invoke init)", func() error {
		if o.StartMode == settings.StartPID2 {
			return errors.New("--boot and --as-pid2 may not be combined.")
		}
		o.StartMode = settings.StartBoot
		return nil
	})
	c.masked("chdir", "chdir", "", "PATH", "Set working directory in the container", func(s string) error {
		if !path.IsAbs(s) {
			return fmt.Errorf("Working directory %s is not an absolute path.", s)
		}
		if !settings.NormalizedPath(s) {
			return fmt.Errorf("Working directory path is not normalized: %s", s)
		}
		if belowAPIVFS(s) {
			return fmt.Errorf("Working directory is below API VFS, refusing: %s", s)
		}
		o.Chdir = path.Clean(s)
		return nil
	})
	c.masked("env", "setenv", "E", "NAME[=VALUE]", "Pass an environment variable to PID 1", func(s string) error {
		name, _, has := strings.Cut(s, "=")
		if !settings.ValidVariable(name) {
			return fmt.Errorf("%q is no environment variable", s)
		}
		if !has {
			v, ok := os.LookupEnv(name)
			if !ok {
				return nil
			}
			s = name + "=" + v
		}
		o.Env = append(o.Env, s)
		return nil
	})
	c.masked("user", "user", "u", "USER", "Run the command under specified user or UID", nonEmpty(&o.User))
	c.masked("user", "uid", "", "USER", "The same", nonEmpty(&o.User))
	c.masked("kill-signal", "kill-signal", "", "SIGNAL", "Select signal to use for shutting down PID 1", func(s string) (err error) {
		if s == "help" {
			return words(signalNames())
		}
		o.KillSignal, err = settings.ParseSignal(s)
		return err
	})
	c.masked("notify-ready", "notify-ready", "", "BOOLEAN", "Receive notifications from the child init process", boolTo(&o.NotifyReady))
	c.masked("suppress-sync", "suppress-sync", "", "BOOLEAN", "Suppress any form of disk data synchronization", boolTo(&o.NoSync))
}

func (c *commandLine) identityFlags() {
	o := &c.opts
	c.value("machine", "M", "NAME", "Set the machine name for the container", func(s string) error {
		if s != "" && !spawn.ValidMachineName(s) {
			return fmt.Errorf("Invalid machine name: %s", s)
		}
		o.Machine = s
		return nil
	})
	c.masked("hostname", "hostname", "", "NAME", "Override the hostname for the container", func(s string) error {
		if s != "" && !spawn.ValidMachineName(s) {
			return fmt.Errorf("Invalid hostname: %s", s)
		}
		o.Hostname = s
		return nil
	})
	c.masked("uuid", "uuid", "", "UUID", "Set a specific machine UUID for the container", func(s string) (err error) {
		o.UUID, err = settings.ParseID(s)
		if errors.Is(err, settings.ErrZeroID) {
			err = errors.New("Machine UUID may not be all zeroes.")
		}
		return err
	})
	c.value("slice", "S", "SLICE", "Place the container in the specified slice", func(s string) error {
		if s == "" {
			return errors.New("empty argument")
		}
		if !strings.HasSuffix(s, ".slice") {
			if i := strings.LastIndexByte(s, '.'); i >= 0 && slices.Contains(unitTypes, s[i+1:]) {
				return fmt.Errorf("%q is not a slice", s)
			}
			s += ".slice"
		}
		if plain := strings.ReplaceAll(s, "/", "-"); plain != s {
			fmt.Fprintf(os.Stderr, "Invalid unit name \"%s\" escaped as \"%s\".\n", s, plain)
			s = plain
		}
		o.Slice = s
		return nil
	})
	c.value("property", "", "NAME=VALUE", "Set scope unit property", func(s string) error {
		if name, _, ok := strings.Cut(s, "="); !ok || name == "" {
			return fmt.Errorf("Not an assignment: %s", s)
		}
		o.Properties = append(o.Properties, s)
		return nil
	})
	c.value("register", "", "BOOLEAN", "Register container as machine", func(s string) (err error) {
		if o.RegisterAuto = s == "auto"; o.RegisterAuto {
			s = "yes"
		}
		o.Register, err = settings.ParseBool(s)
		return err
	})
	c.flag("", "keep-unit", "", "Do not register a scope for the machine, reuse the service unit nspawn is running in", func() error { o.KeepUnit = true; return nil })
	c.masked(maskUserns, "private-users", "", "MODE", "Run within user namespace", func(s string) (err error) {
		if s != "" && strings.Trim(s, "0123456789") == "" {
			s += ":65536" // a number is a UID here, not a boolean
		}
		o.Users, err = settings.ParsePrivateUsers(s)
		o.UsersIfAble = false
		if err == nil && o.Users.Mode == settings.UserPick && o.Ownership == "" {
			o.Ownership = "auto"
		}
		return err
	})
	c.optional("private-users", "yes")
	c.flag(maskUserns, "private-users-pick", "U", "Run within user namespace, autoselect UID/GID range", func() error {
		o.Users, o.UsersIfAble = settings.PrivateUsers{Mode: settings.UserPick}, true
		if !c.mask[maskOwnership] {
			o.Ownership = "auto"
		}
		return nil
	})
	c.fs.Lookup("private-users-pick").Hidden = true
	c.masked(maskOwnership, "private-users-ownership", "", "MODE", "Adjust ownership ('chown') or map it ('map') in private user namespace", func(s string) (err error) {
		if s == "help" {
			return words(settings.OwnershipModes)
		}
		o.Ownership, err = settings.ParseOwnership(s)
		return err
	})
	c.flag(maskOwnership, "private-users-chown", "", "Older name of --private-users-ownership=chown", func() error { o.Ownership = "chown"; return nil })
}

func (c *commandLine) networkFlags() {
	o := &c.opts
	net := func(name, short, arg, usage string, f func(string) error) {
		c.masked(maskNetwork, name, short, arg, usage, f)
	}
	linkTo := func(to *[]settings.Link, prefix string) func(string) error {
		return func(s string) error {
			if s == "" { // a list of none, as since 257
				o.PrivateNet = true
				return nil
			}
			l, err := settings.ParseLink(s, prefix)
			if err == nil {
				*to = append(*to, l)
			}
			return err
		}
	}
	c.flag(maskNetwork, "private-network", "", "Disable network in container", func() error { o.PrivateNet = true; return nil })
	net("network-interface", "", "HOSTIF[:CONTAINERIF]", "Assign an existing network interface to the container", linkTo(&o.Interfaces, ""))
	net("network-macvlan", "", "HOSTIF[:CONTAINERIF]", "Create a macvlan network interface based on an existing network interface", linkTo(&o.MACVLANs, "mv-"))
	net("network-ipvlan", "", "HOSTIF[:CONTAINERIF]", "Create an ipvlan network interface based on an existing network interface", linkTo(&o.IPVLANs, "iv-"))
	c.flag(maskNetwork, "network-veth", "n", "Add a virtual Ethernet connection between host and container", func() error { o.Veth = true; return nil })
	net("network-veth-extra", "", "HOSTIF[:CONTAINERIF]", "Add an additional virtual Ethernet link between host and container", func(s string) error {
		if s == "" {
			return errors.New("empty argument")
		}
		return linkTo(&o.VethExtra, "")(s)
	})
	net("network-bridge", "", "INTERFACE", "Add a virtual Ethernet connection and attach it to an existing bridge", func(s string) error {
		if !netname.ValidIfname(s) {
			return fmt.Errorf("Bridge interface name not valid: %s", s)
		}
		o.Bridge = s
		return nil
	})
	net("network-zone", "", "NAME", "The same, with an automatically managed bridge interface", func(s string) error {
		if !netname.ValidZone(s) {
			return fmt.Errorf("Network zone name not valid: vz-%s", s)
		}
		o.Zone = s
		return nil
	})
	net("network-namespace-path", "", "PATH", "Set network namespace to the one represented by the specified kernel namespace file node", absolute(&o.NetnsPath))
	net("port", "p", "[PROTOCOL:]HOSTPORT[:CONTAINERPORT]", "Expose a container IP port on the host", func(s string) error {
		p, err := settings.ParsePort(s)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(o.Ports, func(q settings.Port) bool { return q.Protocol == p.Protocol && q.Host == p.Host }) {
			return fmt.Errorf("Duplicate port specification: %s", s)
		}
		o.Ports = append(o.Ports, p)
		return nil
	})
}

func (c *commandLine) securityFlags() {
	o := &c.opts
	set := func(to *uint64) func(string) error {
		return func(s string) error {
			if s == "help" {
				return words(caps.Names())
			}
			if strings.ContainsAny(s, " \t\r\n") {
				return errors.New("capabilities are separated by commas here")
			}
			mask, err := caps.Parse(s)
			*to |= mask
			return err
		}
	}
	c.masked(maskCaps, "capability", "", "CAP", "In addition to the default, retain specified capability", set(&o.CapAdd))
	c.masked(maskCaps, "drop-capability", "", "CAP", "Drop the specified capability from the default set", set(&o.CapDrop))
	c.masked(maskCaps, "ambient-capability", "", "CAP", "Sets the specified capability for the started process", func(s string) error {
		if slices.Contains(strings.Split(s, ","), "all") {
			return errors.New("AmbientCapability= does not support the value all.")
		}
		return set(&o.CapAmbient)(s)
	})
	c.masked("no-new-privileges", "no-new-privileges", "", "BOOLEAN", "Set PR_SET_NO_NEW_PRIVS flag for container payload", boolTo(&o.NoNewPrivs))
	c.masked("nesting", "nesting", "", "BOOLEAN", "Let container engines and machines run in the container", boolTo(&o.Nesting))
	c.optional("nesting", "yes")
	c.masked("syscalls", "system-call-filter", "", "LIST|~LIST", "Permit/prohibit specific system calls", c.systemCallFilter)
	c.masked("families", "restrict-address-families", "", "LIST|~LIST|none", "Permit/prohibit specific socket address families", func(s string) error {
		rest, deny := strings.CutPrefix(s, "~")
		return o.Families.ParseFamilies(strings.Fields(rest), deny)
	})
	c.masked("rlimit", "rlimit", "", "NAME=LIMIT", "Set a resource limit for the payload", func(s string) error {
		name, value, ok := strings.Cut(s, "=")
		if !ok {
			if s == "help" {
				return words(settings.Limits())
			}
			return fmt.Errorf("--rlimit= expects an '=' assignment. (%q)", s)
		}
		given := name
		name = strings.TrimPrefix(strings.ToUpper(name), "RLIMIT_")
		if !settings.ValidLimit(name) {
			return fmt.Errorf("Unknown resource limit: %s", given)
		}
		l, err := settings.ParseLimit(name, value)
		if err == nil {
			o.Limits[name] = l
			c.mask["limit "+name] = true
		}
		return err
	})
	c.masked("oom", "oom-score-adjust", "", "VALUE", "Set the OOM score adjust value for the payload", func(s string) error {
		n, err := settings.ParseOOMScoreAdjust(s)
		o.OOMScore = &n
		return err
	})
	c.masked("cpus", "cpu-affinity", "", "CPUS", "Adjust the CPU affinity of the container", func(s string) (err error) {
		if s == "" {
			o.CPUs = nil
			return nil
		}
		o.CPUs, err = settings.ParseCPUs(s)
		return err
	})
	c.masked("personality", "personality", "", "ARCH", "Pick personality for this container", func(s string) (err error) {
		o.Personality, err = settings.ParsePersonality(s)
		return err
	})
}

func (c *commandLine) mountFlags() {
	o := &c.opts
	mount := func(name, arg, usage string, f func(string) (settings.Mount, error)) {
		c.masked(maskMounts, name, "", arg, usage, func(s string) error {
			m, err := f(s)
			if err == nil {
				o.Mounts = append(o.Mounts, m)
			}
			return err
		})
	}
	with := func(f func(string, bool) (settings.Mount, error), readOnly bool) func(string) (settings.Mount, error) {
		return func(s string) (settings.Mount, error) { return f(s, readOnly) }
	}
	mount("bind", "PATH[:PATH[:OPTIONS]]", "Bind mount a file or directory from the host into the container", with(settings.ParseBind, false))
	mount("bind-ro", "PATH[:PATH[:OPTIONS]]", "Similar, but creates a read-only bind mount", with(settings.ParseBind, true))
	mount("inaccessible", "PATH", "Over-mount file node with inaccessible node to mask it", settings.ParseInaccessible)
	mount("tmpfs", "PATH:[OPTIONS]", "Mount an empty tmpfs to the specified directory", settings.ParseTmpfs)
	mount("overlay", "PATH[:PATH...]:PATH", "Create an overlay mount from the host to the container", with(settings.ParseOverlay, false))
	mount("overlay-ro", "PATH[:PATH...]:PATH", "Similar, but creates a read-only overlay mount", with(settings.ParseOverlay, true))
}

func (c *commandLine) otherFlags() {
	o := &c.opts
	c.masked("resolv-conf", "resolv-conf", "", "MODE", "Select mode of /etc/resolv.conf initialization", func(s string) (err error) {
		if s == "help" {
			return words(settings.ResolvConfModes)
		}
		o.ResolvConf, err = settings.ParseResolvConf(s)
		return err
	})
	c.masked("timezone", "timezone", "", "MODE", "Select mode of /etc/localtime initialization", func(s string) (err error) {
		if s == "help" {
			return words(settings.TimezoneModes)
		}
		o.Timezone, err = settings.ParseTimezone(s)
		return err
	})
	c.masked("link-journal", "link-journal", "", "MODE", "Link up guest journal", func(s string) (err error) {
		if s == "help" {
			return words([]string{"no", "host", "try-host", "guest", "try-guest", "auto"})
		}
		o.LinkJournal, o.JournalTry, err = settings.ParseLinkJournal(s)
		return err
	})
	c.flag("link-journal", "link-journal-try-guest", "j", "Equivalent to --link-journal=try-guest", func() error { o.LinkJournal, o.JournalTry = "guest", true; return nil })
	c.fs.Lookup("link-journal-try-guest").Hidden = true
	c.journalFlags()
	modes := []string{"autopipe", "interactive", "passive", "pipe", "read-only"}
	c.value("console", "", "MODE", "Select how stdin/stdout/stderr and /dev/console are set up for the container", func(s string) error {
		if s == "help" {
			return words(modes)
		}
		if !slices.Contains(modes, s) {
			return fmt.Errorf("Unknown console mode: %s", s)
		}
		o.Console = s
		return nil
	})
	c.flag("", "pipe", "P", "Equivalent to --console=pipe", func() error { o.Console = "pipe"; return nil })
	c.value("background", "", "COLOR", "Set terminal background color", func(s string) error {
		if strings.Trim(s, "0123456789;:") != "" {
			return fmt.Errorf("%q is no ANSI colour sequence", s)
		}
		o.Background = s
		return nil
	})
	c.value("set-credential", "", "ID:VALUE", "Pass a credential with literal value to container", c.setCredential)
	c.value("load-credential", "", "ID:PATH", "Load credential to pass to container from file or AF_UNIX stream socket", c.loadCredential)
	c.flag("", "quiet", "q", "Do not show status information", func() error { o.Quiet = true; return nil })
	c.value("settings", "", "BOOLEAN", "Load additional settings from .nspawn file", func(s string) error {
		switch s {
		case "override", "trusted":
			o.SettingsMode = s
			return nil
		}
		on, err := settings.ParseBool(s)
		o.SettingsMode = map[bool]string{true: "yes", false: "no"}[on]
		return err
	})
	c.flag("", "cleanup", "", "Clean up left-over mounts and underlying mount points used by the container", func() error { o.Cleanup = true; return nil })
	c.flag("", "no-pager", "", "Do not pipe output into a pager", func() error { return nil })
	c.flag("", "no-ask-password", "", "Do not prompt for password", func() error { o.NoAskPassword = true; return nil })
	c.flag("", "system", "", "Run in the system service manager scope", func() error { return nil })
	c.flag("", "help", "h", "Show this help", func() error { c.usage(); return errDone })
	c.flag("", "version", "", "Print version string", func() error { fmt.Print(release.Text("machine-spawn", version)); return errDone })
}

// refusedFlags are options of stock that need what is not here. They are refused
// instead of ignored.
func (c *commandLine) refusedFlags() {
	for _, r := range []struct{ name, short, why string }{
		{"selinux-context", "Z", "SELinux labels"},
		{"selinux-apifs-context", "L", "SELinux labels"},
		{"private-users-delegate", "", "systemd-nsresourced"},
	} {
		c.value(r.name, r.short, "", "", func(string) error { return fmt.Errorf("%s not supported by this program", plural(r.why)) })
		c.fs.Lookup(r.name).Hidden = true
	}
}

func plural(what string) string {
	if strings.HasSuffix(what, "s") {
		return what + " are"
	}
	return what + " is"
}
