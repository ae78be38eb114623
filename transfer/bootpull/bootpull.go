// Package bootpull turns what the kernel command line and the credential
// import.pull ask to be downloaded at boot into units (systemd.generator(7)), as
// systemd-import-generator(8) does. It downloads nothing and reads no file: its
// caller gives it the texts.
package bootpull

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"

	"machined/image"
	"machined/internal/unit"
	"machined/transfer"
)

// Pull is one download.
type Pull struct {
	Kind     transfer.Kind
	Class    image.Class
	Local    string
	Remote   string
	Verify   transfer.Verify
	ReadOnly bool
	BlockDev bool // attached to a loop device afterwards
	Runtime  bool // below /run, gone with the next boot
}

// Config is what the downloads have in common.
type Config struct {
	Initrd                       bool
	SuccessAction, FailureAction string
	// Origin returns the URL that the system was booted from, for "bootorigin".
	Origin func() (string, error)
	// LoopUnit says whether there is a systemd-loop@.service for "blockdev".
	LoopUnit bool
	// Warn is told what is wrong with an expression that is left out.
	Warn func(err error)
}

// Parse reads the kernel command line. It fills the actions of c.
func (c *Config) Parse(cmdline string) []Pull {
	var pulls []Pull
	for _, word := range words(cmdline) {
		key, value, _ := strings.Cut(word, "=")
		key = strings.ReplaceAll(key, "_", "-")
		rest, initrd := strings.CutPrefix(key, "rd.")
		if initrd != c.Initrd || value == "" || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' }) {
			continue
		}
		switch rest {
		case "systemd.pull":
			pulls = c.add(pulls, value)
		case "systemd.pull.success-action":
			c.SuccessAction = value
		case "systemd.pull.failure-action":
			c.FailureAction = value
		}
	}
	return pulls
}

// ParseCredential reads the lines of the credential.
func (c *Config) ParseCredential(text string) []Pull {
	var pulls []Pull
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			pulls = c.add(pulls, line)
		}
	}
	return pulls
}

func (c *Config) add(pulls []Pull, expression string) []Pull {
	p, err := c.expression(expression)
	if err != nil {
		c.Warn(fmt.Errorf("pull expression %q is left out: %w", expression, err))
		return pulls
	}
	return append(pulls, p)
}

// words splits the kernel command line: quotes keep spaces together.
func words(line string) []string {
	var list []string
	var word strings.Builder
	quote, open := rune(0), false
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '"' || r == '\''):
			quote, open = r, true
		case quote == 0 && strings.ContainsRune(" \t\n\r", r):
			if open {
				list = append(list, word.String())
			}
			word.Reset()
			open = false
		default:
			word.WriteRune(r)
			open = true
		}
	}
	if open {
		list = append(list, word.String())
	}
	return list
}

// expression reads OPTIONS:NAME:URL.
func (c *Config) expression(s string) (Pull, error) {
	p := Pull{Verify: transfer.VerifySignature, Runtime: c.Initrd}
	options, rest, ok := strings.Cut(s, ":")
	if !ok {
		return p, errors.New("it has no local name")
	}
	if p.Local, p.Remote, ok = strings.Cut(rest, ":"); !ok {
		return p, errors.New("it has no URL")
	}
	origin := false
	for option := range strings.SplitSeq(options, ",") {
		if err := c.option(&p, option, &origin); err != nil {
			c.Warn(fmt.Errorf("pull expression %q: %w", s, err))
		}
	}
	if origin {
		if err := c.relocate(&p); err != nil {
			return p, err
		}
	}
	switch {
	case p.Local != "" && !image.ValidName(p.Local):
		return p, fmt.Errorf("%q is no name of an image", p.Local)
	case p.Kind == "":
		return p, errors.New("it says neither tar nor raw")
	case p.Class == "":
		return p, errors.New("it names no class of image (machine, portable, sysext, confext)")
	case p.BlockDev && p.Kind != transfer.PullRaw:
		return p, errors.New("blockdev is for disk images only")
	}
	if err := transfer.CheckURL(p.Remote); err != nil {
		return p, err
	}
	if p.Local == "" {
		name, err := transfer.NameOf(p.Remote, p.Kind)
		if err != nil {
			return p, err
		}
		if !image.ValidName(name) {
			return p, fmt.Errorf("%q is no name of an image", name)
		}
		p.Local = name
	}
	return p, nil
}

// option takes one word of the options; unknown ones are told of and passed over.
func (c *Config) option(p *Pull, word string, origin *bool) error {
	key, value, _ := strings.Cut(word, "=")
	switch {
	case word == "ro":
		p.ReadOnly = true
	case word == "rw":
		p.ReadOnly = false
	case word == "tar":
		p.Kind = transfer.PullTar
	case word == "raw":
		p.Kind = transfer.PullRaw
	case word == "blockdev":
		p.BlockDev = true
	case word == "bootorigin":
		*origin = true
	case slices.Contains(image.Classes, image.Class(word)):
		p.Class = image.Class(word)
	case key == "runtime":
		switch value {
		case "1", "yes", "true", "on":
			p.Runtime = true
		case "0", "no", "false", "off":
			p.Runtime = false
		default:
			return fmt.Errorf("runtime=%s is no boolean", value)
		}
	case key == "verify":
		verify, err := transfer.ParseVerify(value)
		if err != nil || value == "" {
			return fmt.Errorf("unknown verification mode %q", value)
		}
		p.Verify = verify
	default:
		return fmt.Errorf("unknown option %q", word)
	}
	return nil
}

// relocate makes the URL one beside that of the boot image.
func (c *Config) relocate(p *Pull) error {
	if c.Origin == nil {
		return errors.New("where the system was booted from is not known")
	}
	base, err := c.Origin()
	if err != nil {
		return fmt.Errorf("where the system was booted from: %w", err)
	}
	u, err := url.Parse(base)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("the system was booted from %q, which is no URL of a web server", base)
	}
	i := strings.LastIndexByte(base, '/')
	if i < len(u.Scheme)+len("://") {
		return fmt.Errorf("the system was booted from %q, which names no file", base)
	}
	p.Remote = base[:i+1] + p.Remote
	return nil
}

// Root is where the image goes.
func (p Pull) Root() string {
	if !p.Runtime {
		return image.PoolDir(p.Class)
	}
	return map[image.Class]string{
		image.ClassMachine: "/run/machines", image.ClassPortable: "/run/portables",
		image.ClassSysext: "/run/extensions", image.ClassConfext: "/run/confexts",
	}[p.Class]
}

// File is a unit, or a link when it has a target.
type File struct{ Name, Text, Target string }

// Units makes the units for all downloads. program is the path of systemd-pull.
func (c *Config) Units(pulls []Pull, program string) []File {
	var files []File
	wanted := func(name, target string) {
		files = append(files, File{Name: path.Join("imports.target.wants", name), Target: target})
	}
	for i, p := range pulls {
		name := fmt.Sprintf("import%d.service", i)
		files = append(files, File{Name: name, Text: c.service(p, program)})
		wanted(name, "../"+name)
		if loop := p.loopUnit(); loop != "" {
			if c.LoopUnit {
				wanted(loop, "/usr/lib/systemd/system/systemd-loop@.service")
			} else {
				c.Warn(fmt.Errorf("image %q is not attached to a block device: there is no systemd-loop@.service", p.Local))
			}
		}
	}
	return files
}

// loopUnit is the unit that attaches the image to a loop device.
func (p Pull) loopUnit() string {
	if !p.BlockDev {
		return ""
	}
	return "systemd-loop@" + unit.Escape(strings.TrimPrefix(path.Join(p.Root(), p.Local+".raw"), "/")) + ".service"
}

func (c *Config) service(p Pull, program string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Automatically generated by systemd-import-generator\n")
	line("[Unit]")
	line("Description=Download of %s", specifiers(p.Remote))
	line("Documentation=man:systemd-import-generator(8)")
	line("SourcePath=/proc/cmdline")
	line("DefaultDependencies=no")
	line("RequiresMountsFor=%s", p.Root())
	line("After=imports-pre.target systemd-remount-fs.service")
	line("Conflicts=shutdown.target")
	before := "imports.target shutdown.target"
	switch p.Class {
	case image.ClassSysext:
		before += " systemd-sysext.service"
	case image.ClassConfext:
		before += " systemd-confext.service"
	}
	if loop := p.loopUnit(); loop != "" && c.LoopUnit {
		before += " " + specifiers(loop)
	}
	line("Before=%s", before)
	if !strings.HasPrefix(p.Remote, "file:") {
		line("Wants=network-online.target")
		line("After=network-online.target")
	}
	if c.SuccessAction != "" {
		line("SuccessAction=%s", c.SuccessAction)
	}
	if c.FailureAction != "" {
		line("FailureAction=%s", c.FailureAction)
	}
	line("\n[Service]")
	line("Type=oneshot")
	line("NotifyAccess=main")
	args := []string{program, "--class=" + string(p.Class), "--image-root=" + p.Root(), "--verify=" + string(p.Verify), "--keep-download=no"}
	if p.ReadOnly {
		args = append(args, "--read-only")
	}
	args = append(args, strings.TrimPrefix(string(p.Kind), "pull-"), "--", p.Remote, p.Local)
	for i := range args {
		args[i] = specifiers(quoted(args[i]))
	}
	line("ExecStart=:%s", strings.Join(args, " "))
	return b.String()
}

// quoted makes one word of s (systemd.syntax(7), "Quoting").
func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// specifiers keeps per cent signs from being read as systemd.unit(5), "Specifiers".
func specifiers(s string) string { return strings.ReplaceAll(s, "%", "%%") }
