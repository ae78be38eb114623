package main

import (
	"fmt"
	"os"
	"strings"

	"machined/internal/seccomp"
)

// systemCallFilter adds names and @groups to what is allowed or, behind ~, denied.
// A name that is none gives nobody anything and is passed over, as by stock; to
// deny it would filter nothing.
func (c *commandLine) systemCallFilter(s string) error {
	list := &c.opts.SyscallAllow
	rest, deny := strings.CutPrefix(s, "~")
	if deny {
		list = &c.opts.SyscallDeny
	}
	for _, name := range strings.Fields(rest) {
		switch {
		case seccomp.ValidName(name):
			*list = append(*list, name)
		case deny:
			return fmt.Errorf("%q is no system call and no @group", name)
		default:
			fmt.Fprintf(os.Stderr, "Failed to add rule for system call %s, ignoring: it is no system call and no @group\n", name)
		}
	}
	return nil
}
