package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"

	"machined/spawn"
	"machined/spawn/settings"
)

func randomSuffix() string {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// settingsFile reads the machine's .nspawn file and merges it under the command
// line, or over it with --settings=override (systemd.nspawn(5)).
func (c *commandLine) settingsFile() error {
	mode := c.opts.SettingsMode
	if mode == "no" || c.opts.OCIBundle != "" {
		return nil
	}
	name, trusted, ok := settings.Find(c.settingsName, c.imagePath)
	if !ok {
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("open settings: %w", err)
	}
	defer f.Close()
	file, warnings, err := settings.Parse(f)
	if err == nil && !trusted && mode != "trusted" {
		warnings = append(warnings, file.DropUntrusted()...)
	}
	for _, w := range warnings {
		fmt.Fprintln(os.Stderr, w.In(name))
	}
	if err != nil {
		return fmt.Errorf("%s:%w", name, err)
	}
	if file.AmbientAll {
		return errors.New("AmbientCapability= does not support the value all.")
	}
	if mode == "override" {
		c.mask = map[string]bool{}
	}
	c.merge(file)
	return nil
}

// merge takes from the file what no option hides.
func (c *commandLine) merge(f *settings.File) {
	o := &c.opts
	if !c.mask[maskStart] && f.StartMode != settings.StartUnset {
		o.StartMode, o.Args = f.StartMode, f.Parameters
	}
	take(c, "ephemeral", &o.Ephemeral, f.Ephemeral)
	take(c, "read-only", &o.ReadOnly, f.ReadOnly)
	take(c, "notify-ready", &o.NotifyReady, f.NotifyReady)
	take(c, "suppress-sync", &o.NoSync, f.SuppressSync)
	take(c, "no-new-privileges", &o.NoNewPrivs, f.NoNewPrivileges)
	take(c, "families", &o.Families, f.AddressFamilies)
	take(c, "nesting", &o.Nesting, f.Nesting)
	take(c, "uuid", &o.UUID, f.MachineID)
	text(c, "user", &o.User, f.User)
	text(c, "chdir", &o.Chdir, f.WorkingDirectory)
	text(c, "hostname", &o.Hostname, f.Hostname)
	text(c, "personality", &o.Personality, f.Personality)
	text(c, "resolv-conf", &o.ResolvConf, f.ResolvConf)
	text(c, "timezone", &o.Timezone, f.Timezone)
	text(c, "volatile", &o.Volatile, f.Volatile)
	list(c, "env", &o.Env, f.Environment)
	list(c, "cpus", &o.CPUs, f.CPUAffinity)
	list(c, maskMounts, &o.Mounts, f.Mounts)
	list(c, maskBindUser, &o.BindUsers, f.BindUsers)
	take(c, maskUserShell, &o.BindUserShell, f.BindUserShell)
	if !c.mask["pivot-root"] && f.PivotRootNew != "" {
		o.PivotNew, o.PivotOld = f.PivotRootNew, f.PivotRootOld
	}
	if !c.mask["kill-signal"] && f.KillSignal != 0 {
		o.KillSignal = f.KillSignal
	}
	if !c.mask["oom"] && f.OOMScoreAdjust != nil {
		o.OOMScore = f.OOMScoreAdjust
	}
	if !c.mask["link-journal"] && f.LinkJournal != "" {
		o.LinkJournal, o.JournalTry = f.LinkJournal, f.LinkJournalTry
	}
	if !c.mask[maskCaps] {
		o.CapAdd |= f.Capability
		o.CapAmbient |= f.AmbientCapability
		o.CapDrop |= f.DropCapability
	}
	if !c.mask["syscalls"] {
		o.SyscallAllow = append(o.SyscallAllow, f.SystemCallAllow...)
	}
	o.SyscallDeny = append(o.SyscallDeny, f.SystemCallDeny...)
	for name, l := range f.Limits {
		if !c.mask["limit "+name] {
			o.Limits[name] = l
		}
	}
	c.mergeUsers(f)
	c.mergeNetwork(f)
}

func (c *commandLine) mergeUsers(f *settings.File) {
	o := &c.opts
	if c.mask[maskUserns] || c.mask[maskOwnership] {
		return // one group: each option hides both keys
	}
	if f.PrivateUsers != nil {
		c.usersSaid = true
		o.Users, o.UsersIfAble, o.Ownership = *f.PrivateUsers, false, ""
	}
	if f.Ownership != "" {
		o.Ownership = f.Ownership
	}
}

// mergeNetwork takes all of [Network] or nothing.
func (c *commandLine) mergeNetwork(f *settings.File) {
	o := &c.opts
	said := f.Private != nil || f.VirtualEthernet != nil || f.PrivateNetwork() || len(f.Ports) > 0
	if c.mask[maskNetwork] || !said {
		return
	}
	if f.Private != nil || f.VirtualEthernet != nil || f.PrivateNetwork() {
		o.PrivateNet, o.Veth = f.PrivateNetwork(), f.Veth()
		o.Interfaces, o.MACVLANs, o.IPVLANs = f.Interfaces, f.MACVLANs, f.IPVLANs
		o.VethExtra = f.VirtualEthernetExtra
		o.Bridge, o.Zone, o.NetnsPath = f.Bridge, f.Zone, f.NamespacePath
	}
	if len(f.Ports) > 0 {
		o.Ports = f.Ports
	}
}

func take[T any](c *commandLine, mask string, to *T, from *T) {
	if !c.mask[mask] && from != nil {
		*to = *from
	}
}

func text(c *commandLine, mask string, to *string, from string) {
	if !c.mask[mask] && from != "" {
		*to = from
	}
}

func list[T any](c *commandLine, mask string, to *[]T, from []T) {
	if !c.mask[mask] && len(from) > 0 {
		*to = slices.Clone(from)
	}
}

var _ spawn.Registrar = (*bus)(nil)
