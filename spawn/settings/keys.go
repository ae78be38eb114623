package settings

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"machined/internal/caps"
	"machined/internal/seccomp"
)

// keys has one row per key: what takes its value. A value that is empty resets a
// list or unsets a setting.
var keys = map[string]func(*parser, string) error{
	"Exec.Boot":                    func(p *parser, v string) error { return setBool(&p.boot, v) },
	"Exec.ProcessTwo":              func(p *parser, v string) error { return setBool(&p.pid2, v) },
	"Exec.Ephemeral":               func(p *parser, v string) error { return setBool(&p.file.Ephemeral, v) },
	"Exec.Parameters":              func(p *parser, v string) error { return words(&p.file.Parameters, v, true, nil) },
	"Exec.Environment":             func(p *parser, v string) error { return words(&p.file.Environment, v, false, validAssignment) },
	"Exec.User":                    func(p *parser, v string) error { return text(&p.file.User, v, nil) },
	"Exec.WorkingDirectory":        func(p *parser, v string) error { return text(&p.file.WorkingDirectory, v, validPath) },
	"Exec.PivotRoot":               (*parser).pivotRoot,
	"Exec.Capability":              func(p *parser, v string) error { return p.capabilities(&p.file.Capability, v) },
	"Exec.DropCapability":          func(p *parser, v string) error { return p.capabilities(&p.file.DropCapability, v) },
	"Exec.AmbientCapability":       (*parser).ambientCapability,
	"Exec.KillSignal":              func(p *parser, v string) (err error) { return assign(&p.file.KillSignal, v, ParseSignal) },
	"Exec.Personality":             func(p *parser, v string) error { return text(&p.file.Personality, v, validPersonality) },
	"Exec.MachineID":               func(p *parser, v string) error { return pointer(&p.file.MachineID, v, ParseID) },
	"Exec.PrivateUsers":            func(p *parser, v string) error { return pointer(&p.file.PrivateUsers, v, ParsePrivateUsers) },
	"Exec.PrivateUsersDelegate":    (*parser).delegate,
	"Exec.NotifyReady":             func(p *parser, v string) error { return setBool(&p.file.NotifyReady, v) },
	"Exec.SystemCallFilter":        (*parser).systemCallFilter,
	"Exec.RestrictAddressFamilies": (*parser).addressFamilies,
	"Exec.OOMScoreAdjust":          (*parser).oomScoreAdjust,
	"Exec.CPUAffinity":             (*parser).cpuAffinity,
	"Exec.Hostname":                func(p *parser, v string) error { return text(&p.file.Hostname, v, validHostname) },
	"Exec.NoNewPrivileges":         func(p *parser, v string) error { return setBool(&p.file.NoNewPrivileges, v) },
	"Exec.Nesting":                 func(p *parser, v string) error { return setBool(&p.file.Nesting, v) },
	"Exec.ResolvConf":              func(p *parser, v string) error { return assign(&p.file.ResolvConf, v, ParseResolvConf) },
	"Exec.Timezone":                func(p *parser, v string) error { return assign(&p.file.Timezone, v, ParseTimezone) },
	"Exec.LinkJournal":             (*parser).linkJournal,
	"Exec.SuppressSync":            func(p *parser, v string) error { return setBool(&p.file.SuppressSync, v) },

	"Files.ReadOnly":              func(p *parser, v string) error { return setBool(&p.file.ReadOnly, v) },
	"Files.Volatile":              func(p *parser, v string) error { return assign(&p.file.Volatile, v, ParseVolatile) },
	"Files.Bind":                  func(p *parser, v string) error { return p.mount(ParseBind(v, false)) },
	"Files.BindReadOnly":          func(p *parser, v string) error { return p.mount(ParseBind(v, true)) },
	"Files.TemporaryFileSystem":   func(p *parser, v string) error { return p.mount(ParseTmpfs(v)) },
	"Files.Inaccessible":          func(p *parser, v string) error { return p.mount(ParseInaccessible(v)) },
	"Files.Overlay":               func(p *parser, v string) error { return p.mount(ParseOverlay(v, false)) },
	"Files.OverlayReadOnly":       func(p *parser, v string) error { return p.mount(ParseOverlay(v, true)) },
	"Files.PrivateUsersOwnership": func(p *parser, v string) error { return assign(&p.file.Ownership, v, ParseOwnership) },
	"Files.PrivateUsersChown":     (*parser).chown,
	"Files.BindUser":              (*parser).bindUser,
	"Files.BindUserShell":         func(p *parser, v string) error { return pointer(&p.file.BindUserShell, v, ParseBindUserShell) },

	"Network.Private":              func(p *parser, v string) error { return setBool(&p.file.Private, v) },
	"Network.VirtualEthernet":      func(p *parser, v string) error { return setBool(&p.file.VirtualEthernet, v) },
	"Network.VirtualEthernetExtra": func(p *parser, v string) error { return links(&p.file.VirtualEthernetExtra, v, "", "") },
	"Network.Interface":            func(p *parser, v string) error { return links(&p.file.Interfaces, v, "", "Network") },
	"Network.MACVLAN":              func(p *parser, v string) error { return links(&p.file.MACVLANs, v, "mv-", "MACVLAN network") },
	"Network.IPVLAN":               func(p *parser, v string) error { return links(&p.file.IPVLANs, v, "iv-", "IPVLAN network") },
	"Network.Bridge":               func(p *parser, v string) error { return text(&p.file.Bridge, v, validIfname) },
	"Network.Zone":                 func(p *parser, v string) error { return text(&p.file.Zone, v, validZone) },
	"Network.Port":                 (*parser).port,
	"Network.NamespacePath":        func(p *parser, v string) error { return text(&p.file.NamespacePath, v, validPath) },
}

// Keys returns all keys as SECTION.NAME, sorted, but the Limit ones.
func Keys() []string {
	var out []string
	for k := range keys {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func setBool(to **bool, v string) error { return pointer(to, v, ParseBool) }

func pointer[T any](to **T, v string, parse func(string) (T, error)) error {
	if v == "" {
		*to = nil
		return nil
	}
	x, err := parse(v)
	if err == nil {
		*to = &x
	}
	return err
}

func assign[T any](to *T, v string, parse func(string) (T, error)) error {
	var x T
	var err error
	if v != "" {
		x, err = parse(v)
	}
	if err == nil {
		*to = x
	}
	return err
}

func text(to *string, v string, valid func(string) error) error {
	if v != "" && valid != nil {
		if err := valid(v); err != nil {
			return err
		}
	}
	*to = v
	return nil
}

// words appends the words of v to a list, or puts them in its place. Invalid ones
// make the whole line invalid.
func words(to *[]string, v string, replace bool, valid func(string) error) error {
	if v == "" {
		*to = nil
		return nil
	}
	list, err := SplitWords(v)
	if err != nil {
		return err
	}
	if valid != nil {
		for _, w := range list {
			if err := valid(w); err != nil {
				return err
			}
		}
	}
	if replace {
		*to = list
	} else {
		*to = append(*to, list...)
	}
	return nil
}

// capabilities adds those that it knows; one that it does not makes a warning.
func (p *parser) capabilities(to *uint64, v string) error {
	if v == "" {
		*to = 0
		return nil
	}
	list, err := SplitWords(v)
	if err != nil {
		return err
	}
	for _, w := range list {
		mask, err := caps.Parse(w)
		if err != nil {
			p.warnf("Failed to parse capability, ignoring: %s", w)
			continue
		}
		*to |= mask
	}
	return nil
}

func (p *parser) ambientCapability(v string) error {
	list, _ := SplitWords(v)
	if slices.Contains(list, "all") {
		p.file.AmbientAll = true
	}
	return p.capabilities(&p.file.AmbientCapability, v)
}

// bindUser adds the users whose names are names.
func (p *parser) bindUser(v string) error {
	if v == "" {
		p.file.BindUsers = nil
		return nil
	}
	for w := range strings.FieldsSeq(v) {
		if validUser(w) != nil || strings.ContainsAny(w, `"'\,;|&<>$`) {
			p.warnf("User name '%s' not valid, ignoring.", w)
			return nil
		}
		p.file.BindUsers = append(p.file.BindUsers, w)
	}
	return nil
}

// links adds network links. With what, a name that is none makes the file unusable:
// a machine without the link would be cut off, or have another one's place.
func links(to *[]Link, v, prefix, what string) error {
	if v == "" {
		*to = nil
		return nil
	}
	var add []Link
	for w := range strings.FieldsSeq(v) {
		l, err := ParseLink(w, prefix)
		if err != nil && what != "" {
			return fmt.Errorf("%s interface, interface name not valid: %s: %w", what, w, errFatal)
		}
		if err != nil {
			return err
		}
		add = append(add, l)
	}
	*to = append(*to, add...)
	return nil
}

func (p *parser) mount(m Mount, err error) error {
	if err == nil {
		p.file.Mounts = append(p.file.Mounts, m)
	}
	return err
}

func (p *parser) pivotRoot(v string) error {
	if v == "" {
		p.file.PivotRootNew, p.file.PivotRootOld = "", ""
		return nil
	}
	to, old, err := ParsePivotRoot(v)
	if err == nil {
		p.file.PivotRootNew, p.file.PivotRootOld = to, old
	}
	return err
}

func (p *parser) systemCallFilter(v string) error {
	if v == "" {
		p.file.SystemCallAllow, p.file.SystemCallDeny = nil, nil
		return nil
	}
	deny := strings.HasPrefix(v, "~")
	list, err := SplitWords(strings.TrimPrefix(v, "~"))
	if err != nil {
		return err
	}
	if deny {
		p.file.SystemCallDeny = append(p.file.SystemCallDeny, list...)
	} else {
		p.file.SystemCallAllow = append(p.file.SystemCallAllow, list...)
	}
	return nil
}

// delegate takes no more than none: ranges come from systemd-nsresourced, which this
// program does not speak to, and machines that lack theirs shall not start.
func (p *parser) delegate(v string) error {
	n, err := strconv.ParseUint(v, 10, 32)
	if v == "" || err == nil && n == 0 {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("PrivateUsersDelegate= is not supported by this program: it needs systemd-nsresourced (%w)", errFatal)
	}
	return err
}

func (p *parser) addressFamilies(v string) error {
	if p.file.AddressFamilies == nil {
		p.file.AddressFamilies = &seccomp.Families{}
	}
	rest, deny := strings.CutPrefix(v, "~")
	list, err := SplitWords(rest)
	if err != nil {
		return err
	}
	return p.file.AddressFamilies.ParseFamilies(list, deny)
}

func (p *parser) cpuAffinity(v string) error {
	if v == "" {
		p.file.CPUAffinity = nil
		return nil
	}
	cpus, err := ParseCPUs(v)
	if err != nil {
		return fmt.Errorf("Failed to parse CPU affinity '%s' (%w): %w", v, err, errFatal)
	}
	cpus = append(cpus, p.file.CPUAffinity...)
	slices.Sort(cpus)
	p.file.CPUAffinity = slices.Compact(cpus)
	return nil
}

func (p *parser) linkJournal(v string) error {
	mode, try, err := "", false, error(nil)
	if v != "" {
		mode, try, err = ParseLinkJournal(v)
	}
	if err == nil {
		p.file.LinkJournal, p.file.LinkJournalTry = mode, try
	}
	return err
}

func (p *parser) chown(v string) error {
	on, err := ParseBool(v)
	if err != nil {
		return err
	}
	p.file.Ownership = "off"
	if on {
		p.file.Ownership = "chown"
	}
	return nil
}

func (p *parser) port(v string) error {
	if v == "" {
		p.file.Ports = nil
		return nil
	}
	var add []Port
	for w := range strings.FieldsSeq(v) {
		port, err := ParsePort(w)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(slices.Concat(p.file.Ports, add), func(q Port) bool { return q.Protocol == port.Protocol && q.Host == port.Host }) {
			p.warnf("Duplicate port specification, ignoring: %s", w)
			continue
		}
		add = append(add, port)
	}
	p.file.Ports = append(p.file.Ports, add...)
	return nil
}

func (p *parser) oomScoreAdjust(v string) error {
	err := pointer(&p.file.OOMScoreAdjust, v, ParseOOMScoreAdjust)
	if _, notNumber := strconv.Atoi(v); err != nil && notNumber == nil {
		return plainError("OOM score adjust value out of range, ignoring: " + v)
	}
	return err
}

func (p *parser) limit(name, v string) error {
	if v == "" {
		delete(p.file.Limits, name)
		return nil
	}
	l, err := ParseLimit(name, v)
	if errors.Is(err, ErrSoftAboveHard) {
		return plainError("Soft resource limit chosen higher than hard limit, ignoring: " + v)
	}
	if err != nil {
		return err
	}
	if p.file.Limits == nil {
		p.file.Limits = map[string]Limit{}
	}
	p.file.Limits[name] = l
	return nil
}

// NormalizedPath tells whether a path has no part that is "..".
func NormalizedPath(s string) bool { return !slices.Contains(strings.Split(s, "/"), "..") }

func validPath(s string) error {
	switch {
	case !strings.HasPrefix(s, "/"):
		return errors.New("path is not absolute")
	case !NormalizedPath(s):
		return errors.New("path contains ..")
	case len(s) >= 4096:
		return errors.New("path is too long")
	case strings.ContainsRune(s, 0):
		return errors.New("path contains NUL")
	}
	return nil
}

func cleanPath(s string) (string, error) {
	if err := validPath(s); err != nil {
		return "", fmt.Errorf("%q: %w", s, err)
	}
	return path.Clean(s), nil
}

func validAssignment(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok || !ValidVariable(name) || strings.ContainsRune(value, 0) {
		return fmt.Errorf("%q is not an assignment of a variable", s)
	}
	return nil
}

// ValidVariable tells whether name can name an environment variable.
func ValidVariable(name string) bool {
	if name == "" || name[0] >= '0' && name[0] <= '9' {
		return false
	}
	return strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// ValidUser tells whether s can name a user, by name or number, or a user and the
// group to run as after a colon.
func ValidUser(s string) bool {
	user, group, grouped := strings.Cut(s, ":")
	return validUser(user) == nil && (!grouped || validUser(group) == nil)
}

func validUser(s string) error {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		if n == 0xffffffff || n == 0xffff {
			return fmt.Errorf("%q stands for no user", s)
		}
		return nil
	}
	if s == "" || len(s) > 256 || strings.ContainsAny(s, ":/ \t\n\x00") || s == "." || s == ".." || strings.HasPrefix(s, "-") {
		return fmt.Errorf("%q is not a user name", s)
	}
	return nil
}

// ValidHostname tells whether s can be a host name (hostname(7)).
func ValidHostname(s string) bool { return s != "" && validHostname(s) == nil }

func validHostname(s string) error {
	if len(s) > 64 || strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-.") != "" {
		return fmt.Errorf("%q is not a host name", s)
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("%q is not a host name", s)
		}
	}
	return nil
}
