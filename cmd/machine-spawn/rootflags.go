package main

import (
	"errors"
	"fmt"

	"machined/internal/userdb"
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
