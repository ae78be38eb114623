package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"machined/image"
	"machined/internal/cli"
	"machined/internal/release"
	"machined/transfer"
)

// options is the table of the options that this tool has.
func (t *tool) options() []cli.Option {
	on := func(b *bool) func(string) error { return func(string) error { *b = true; return nil } }
	truth := func(name string, set func(bool)) cli.Option {
		return cli.Option{Long: name, Arg: cli.RequiredArg, Set: func(arg string) error {
			value, err := cli.ParseBool(arg)
			if err != nil {
				return cli.Failf("Failed to parse --%s= argument: %s", name, arg)
			}
			set(value)
			return nil
		}}
	}
	class := cli.Option{Long: "class", Arg: cli.RequiredArg, Set: t.setClass}
	table := []cli.Option{
		{Short: 'h', Long: "help", Set: func(string) error { t.help(); return errToolDone }},
		{Long: "version", Set: func(string) error { fmt.Print(release.Text("machined", version)); return errToolDone }},
		{Long: "system", Set: func(string) error { t.user = false; return nil }},
		{Long: "user", Set: on(&t.user)},
	}
	if t.name == "systemd-export" {
		return append(table, class,
			cli.Option{Long: "format", Arg: cli.RequiredArg, Set: func(arg string) error {
				if _, err := transfer.ParseFormat(arg); err != nil || arg == "" {
					return cli.Failf("Unknown format: %s", arg)
				}
				t.format = arg
				return nil
			}})
	}
	table = append(table, class,
		cli.Option{Long: "force", Set: on(&t.req.Force)},
		cli.Option{Long: "image-root", Arg: cli.RequiredArg, Set: func(arg string) error { t.root = arg; return nil }},
		cli.Option{Long: "read-only", Set: on(&t.req.ReadOnly)},
		cli.Option{Long: "direct", Set: on(&t.direct)},
		truth("btrfs-subvol", func(on bool) { t.req.PlainDirectory = !on }),
		truth("btrfs-quota", func(on bool) { t.quota = on }),
		truth("sync", func(on bool) { t.req.NoSync = !on }),
	)
	if t.name == "systemd-import-fs" {
		return table
	}
	table = append(table,
		truth("convert-qcow2", func(on bool) { t.req.KeepQcow2 = !on }),
		cli.Option{Long: "offset", Arg: cli.RequiredArg, Set: func(arg string) error {
			n, err := strconv.ParseInt(arg, 10, 64)
			if err != nil || n < 0 {
				return cli.Failf("Failed to parse --offset= argument: %s", arg)
			}
			t.offset = n
			return nil
		}},
		cli.Option{Long: "size-max", Arg: cli.RequiredArg, Set: func(arg string) error {
			n, err := cli.ParseSize(arg)
			if err != nil || n > math.MaxInt64 {
				return cli.Failf("Failed to parse --size-max= argument: %s", arg)
			}
			t.sizeMax = int64(n)
			return nil
		}},
	)
	if t.name == "systemd-import" {
		return table
	}
	return append(table,
		cli.Option{Long: "verify", Arg: cli.RequiredArg, Set: func(arg string) (err error) {
			t.req.Checksum = nil
			if t.req.Verify, err = transfer.ParseVerify(arg); err == nil && arg != "" {
				return nil
			}
			t.req.Verify = ""
			t.req.Checksum, err = checksumOf(arg)
			return err
		}},
		truth("settings", func(on bool) { t.settings = &on }),
		truth("roothash", func(on bool) { t.roothash = on }),
		truth("roothash-signature", func(on bool) { t.rootsig = on }),
		truth("verity", func(on bool) { t.veri = on }),
		truth("keep-download", func(on bool) { t.keepDownload = &on }),
	)
}

func (t *tool) setClass(arg string) error {
	for _, class := range image.Classes {
		if string(class) == arg {
			t.class = arg
			return nil
		}
	}
	return cli.Failf("Failed to parse --class= argument: %s", arg)
}

// toolHelp has what each tool says of itself: its purpose, and its commands.
var toolHelp = map[string][2]string{
	"systemd-pull": {"Download disk images.", `  tar URL [NAME]              Download a TAR image
  raw URL [NAME]              Download a RAW image
`},
	"systemd-import": {"Import disk images.", `  tar FILE [NAME]             Import a TAR image
  raw FILE [NAME]             Import a RAW image
`},
	"systemd-import-fs": {"Import container images from a file system directory.", `  run DIRECTORY [NAME]        Import a directory
`},
	"systemd-export": {"Export container or virtual machine images.", `  tar NAME [FILE]             Export a TAR image
  raw NAME [FILE]             Export a RAW image
`},
}

// optionHelp says what the options do.
var optionHelp = map[string][2]string{
	"help": {"", "Show this help"}, "version": {"", "Show package version"},
	"system": {"", "Operate in per-system mode"}, "user": {"", "Operate in per-user mode"},
	"class":  {"CLASS", "Select image class (machine, sysext, confext, portable)"},
	"format": {"FORMAT", "Select format"}, "force": {"", "Force creation of image"},
	"image-root": {"PATH", "Image root directory"}, "read-only": {"", "Create a read-only image"},
	"direct":        {"", "Write directly to the specified path"},
	"btrfs-subvol":  {"BOOL", "Create a btrfs subvolume instead of a directory"},
	"btrfs-quota":   {"BOOL", "Set up quota for btrfs subvolumes"},
	"sync":          {"BOOL", "Write everything to the disk before completing"},
	"convert-qcow2": {"BOOL", "Convert QCOW2 images to regular disk images"},
	"offset":        {"BYTES", "Offset to seek to in destination"},
	"size-max":      {"BYTES", "Maximum number of bytes to write to destination"},
	"verify":        {"MODE", "Verify what is downloaded: 'no', 'checksum', 'signature' or a SHA256 hash"},
	"settings":      {"BOOL", "Download settings file with image"},
	"roothash":      {"BOOL", "Download root hash file with image"}, "roothash-signature": {"BOOL", "Download root hash signature file with image"},
	"verity":        {"BOOL", "Download verity file with image"},
	"keep-download": {"BOOL", "Keep a pristine copy of what is downloaded"},
}

func (t *tool) help() {
	var b strings.Builder
	about := toolHelp[t.name]
	fmt.Fprintf(&b, "%s [OPTIONS...] {COMMAND} ...\n\n%s\n\nCommands:\n%s\nOptions:\n", t.name, about[0], about[1])
	for _, o := range t.options() {
		short := "    "
		if o.Short != 0 {
			short = " -" + string(o.Short) + " "
		}
		long := "--" + o.Long
		text := optionHelp[o.Long]
		if text[0] != "" {
			long += "=" + text[0]
		}
		fmt.Fprintf(&b, " %s%-26s %s\n", short, long, text[1])
	}
	fmt.Print(b.String())
}
