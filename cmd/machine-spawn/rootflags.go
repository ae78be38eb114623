package main

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"machined/internal/imagepolicy"
	"machined/internal/userdb"
	"machined/internal/vpick"
	"machined/spawn/settings"
)

// bindUserFlags are the options for users of the host who may log in.
func (c *commandLine) bindUserFlags() {
	o := &c.opts
	c.masked(maskBindUser, "bind-user", "", "NAME", "Bind user from host to container", func(s string) error {
		if !userdb.ValidName(s) {
			return fmt.Errorf("Invalid user name to bind: %s", s)
		}
		if s == "root" {
			return errors.New("Mapping 'root' user not supported, sorry.")
		}
		o.BindUsers = append(o.BindUsers, s)
		return nil
	})
	c.masked(maskUserShell, "bind-user-shell", "", "BOOL|PATH", "Configure the shell to use for --bind-user= users", func(s string) (err error) {
		o.BindUserShell, err = settings.ParseBindUserShell(s)
		return err
	})
	c.value("bind-user-group", "", "GROUP", "Add an auxiliary group to --bind-user= users", func(s string) error {
		if !userdb.ValidName(s) {
			return fmt.Errorf("Invalid bind user auxiliary group name: %s", s)
		}
		o.BindUserGroups = append(o.BindUserGroups, s)
		return nil
	})
}

// diskFlags are the options for disk images alone.
func (c *commandLine) diskFlags() {
	o := &c.opts
	c.value("mstack", "", "PATH", "Root mount stack directory for the container", func(s string) error {
		if s == "" {
			return errors.New("empty argument")
		}
		return absolute(&o.MStack)(s)
	})
	c.value("image-policy", "", "POLICY", "Specify disk image dissection policy", func(s string) error {
		p, err := imagepolicy.Parse(s)
		o.ImagePolicy = &p
		return err
	})
	c.value("root-hash", "", "HASH", "Specify verity root hash for root disk image", func(s string) error {
		hash, err := hex.DecodeString(s)
		if err != nil {
			return fmt.Errorf("Failed to parse root hash: %s", s)
		}
		if len(hash) < 16 {
			return fmt.Errorf("Root hash must be at least 128-bit long: %s", s)
		}
		o.RootHash = hash
		return nil
	})
	c.value("root-hash-sig", "", "SIG", "Specify pkcs7 signature of root hash for verity as a DER encoded PKCS7, either as a path to a file or as an ASCII base64 encoded string prefixed by 'base64:'", func(s string) error {
		if text, ok := strings.CutPrefix(s, "base64:"); ok {
			if _, err := base64.StdEncoding.DecodeString(text); err != nil || text == "" {
				return fmt.Errorf("Failed to parse root hash signature '%s'", s)
			}
			o.RootHashSig = s
			return nil
		}
		if s == "" {
			return errors.New("empty argument")
		}
		return absolute(&o.RootHashSig)(s)
	})
	c.value("verity-data", "", "PATH", "Specify hash device for verity", absolute(&o.VerityData))
}

// pickVersions replaces versioned directories by their newest entries (systemd.v(7)).
func (c *commandLine) pickVersions() error {
	o := &c.opts
	for _, p := range []struct {
		path        *string
		suffix      string
		directories bool
	}{{&o.Directory, "", true}, {&o.Image, ".raw", false}, {&o.MStack, ".mstack", true}} {
		if *p.path == "" {
			continue
		}
		picked, err := vpick.Resolve(*p.path, p.suffix, p.directories)
		if errors.Is(err, vpick.ErrNone) {
			return fmt.Errorf("No matching entries in versioned directory '%s' found.", *p.path)
		}
		if err != nil {
			return fmt.Errorf("Failed to pick version on path '%s': %w", *p.path, err)
		}
		*p.path = picked
	}
	return nil
}
