package main

import (
	"fmt"

	"github.com/spf13/pflag"
)

// usage prints the options.
func (c *commandLine) usage() {
	fmt.Print("systemd-nspawn [OPTIONS...] [PATH] [ARGUMENTS...]\n\nSpawn a command or OS in a light-weight container.\n\n")
	fmt.Printf("  %-40s %s\n", "-U  --private-users=pick", "Run within user namespace, autoselect UID/GID range")
	fmt.Printf("  %-40s %s\n", "-j", "Equivalent to --link-journal=try-guest")
	c.fs.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		short := "    "
		if f.Shorthand != "" {
			short = "-" + f.Shorthand + "  "
		}
		name := "--" + f.Name
		if arg := f.Value.Type(); arg != "" {
			if f.NoOptDefVal != "" {
				name += "[=" + arg + "]"
			} else {
				name += "=" + arg
			}
		}
		if len(short+name) > 40 {
			fmt.Printf("  %s\n  %-40s %s\n", short+name, "", f.Usage)
			return
		}
		fmt.Printf("  %-40s %s\n", short+name, f.Usage)
	})
	fmt.Print("\nSee the systemd-nspawn(1) man page for details.\n")
}
