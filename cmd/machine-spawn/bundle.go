package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"machined/spawn"
	"machined/spawn/oci"
	"machined/spawn/settings"
)

// bundle reads the OCI bundle that was asked for, and takes from it what no
// option says otherwise.
func (c *commandLine) bundle() error {
	o := &c.opts
	if o.OCIBundle == "" {
		return nil
	}
	switch {
	case o.Directory != "", o.Image != "", o.Template != "":
		return errors.New("--oci-bundle= may not be combined with --directory=, --image= or --template=")
	case o.Ephemeral:
		return errors.New("--oci-bundle= and --ephemeral may not be combined")
	case o.Boot() || o.PID2():
		return errors.New("--oci-bundle= and --boot or --as-pid2 may not be combined")
	}
	dir, err := filepath.Abs(o.OCIBundle)
	if err != nil {
		return err
	}
	b, err := oci.Load(dir)
	if err != nil {
		return err
	}
	if !o.Quiet {
		for _, w := range b.Warnings {
			fmt.Fprintf(os.Stderr, "%s: %s\n", filepath.Join(dir, "config.json"), w)
		}
	}
	o.Directory, o.Bundle = filepath.Clean(b.Root), b
	if !c.mask[maskStart] {
		o.StartMode, o.Args = settings.StartCommand, b.Args
	}
	o.Env = append(slices.Clone(b.Env), o.Env...)
	text(c, "chdir", &o.Chdir, b.Cwd)
	text(c, "hostname", &o.Hostname, b.Hostname)
	text(c, "personality", &o.Personality, b.Personality)
	take(c, "read-only", &o.ReadOnly, b.ReadOnly)
	take(c, "no-new-privileges", &o.NoNewPrivs, b.NoNewPrivs)
	if !c.mask["oom"] && b.OOMScore != nil {
		o.OOMScore = b.OOMScore
	}
	for name, l := range b.Limits {
		if !c.mask["limit "+name] {
			o.Limits[name] = l
		}
	}
	if c.mask["user"] {
		b.User = nil
	}
	if c.mask[maskCaps] {
		b.Caps = nil
	}
	if o.Console == "" && b.Terminal != nil && !*b.Terminal {
		o.Console = "pipe"
	}
	c.bundleNamespaces(b)
	if !o.KeepUnit {
		o.Properties = slices.Concat(b.Properties, spawn.DeviceProperties(b.DeviceRules), o.Properties)
		if o.Slice == "" {
			o.Slice = b.Slice
		}
	}
	// The bundle is all there is: nothing of the host's is put into it.
	text(c, "resolv-conf", &o.ResolvConf, "off")
	text(c, "timezone", &o.Timezone, "off")
	text(c, "link-journal", &o.LinkJournal, "no")
	return nil
}

func (c *commandLine) bundleNamespaces(b *oci.Config) {
	o := &c.opts
	if !c.mask[maskUserns] && b.Users != nil {
		o.Users, o.UsersIfAble = *b.Users, false
	}
	ns := b.Namespaces
	if ns == nil {
		return
	}
	k := &o.Knobs
	k.ShareIPC, k.SharePID, k.ShareUTS = !ns.IPC, !ns.PID, !ns.UTS
	k.CgroupNS = k.CgroupNS && ns.Cgroup
	if !c.mask[maskNetwork] {
		o.PrivateNet, o.NetnsPath = ns.Network, ns.NetworkPath
		o.Interfaces = b.Interfaces
	}
}
