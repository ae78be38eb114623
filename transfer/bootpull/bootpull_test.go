package bootpull

import (
	"errors"
	"strings"
	"testing"

	"machined/image"
	"machined/transfer"
)

func TestParse(t *testing.T) {
	tests := []struct {
		name, cmdline string
		initrd        bool
		want          []Pull
		warnings      int
	}{
		{name: "nothing", cmdline: "quiet root=/dev/sda1"},
		{name: "tar", cmdline: "quiet systemd.pull=tar,machine,verify=no:foo:https://x/y.tar.gz", want: []Pull{
			{Kind: transfer.PullTar, Class: image.ClassMachine, Local: "foo", Remote: "https://x/y.tar.gz", Verify: transfer.VerifyNo}}},
		{name: "name of the URL", cmdline: "systemd.pull=raw,confext,ro::http://x/a.confext.raw.xz", want: []Pull{
			{Kind: transfer.PullRaw, Class: image.ClassConfext, Local: "a", Remote: "http://x/a.confext.raw.xz", Verify: transfer.VerifySignature, ReadOnly: true}}},
		{name: "quotes, and two", cmdline: `"systemd.pull=tar,sysext:a b:file:///x.tar" systemd.pull="raw,portable,verify=checksum:c:http://x:8080/c.raw"`, want: []Pull{
			{Kind: transfer.PullTar, Class: image.ClassSysext, Local: "a b", Remote: "file:///x.tar", Verify: transfer.VerifySignature},
			{Kind: transfer.PullRaw, Class: image.ClassPortable, Local: "c", Remote: "http://x:8080/c.raw", Verify: transfer.VerifyChecksum}}},
		{name: "initrd's are not the host's", cmdline: "rd.systemd.pull=tar,machine:foo:https://x/y.tar.gz"},
		{name: "host's are not the initrd's", cmdline: "systemd.pull=tar,machine:foo:https://x/y.tar.gz", initrd: true},
		{name: "initrd", cmdline: "rd.systemd.pull=raw,machine,blockdev:foo:https://x/y.raw", initrd: true, want: []Pull{
			{Kind: transfer.PullRaw, Class: image.ClassMachine, Local: "foo", Remote: "https://x/y.raw", Verify: transfer.VerifySignature, BlockDev: true, Runtime: true}}},
		{name: "runtime", cmdline: "systemd.pull=raw,machine,runtime=yes:foo:https://x/y.raw", want: []Pull{
			{Kind: transfer.PullRaw, Class: image.ClassMachine, Local: "foo", Remote: "https://x/y.raw", Verify: transfer.VerifySignature, Runtime: true}}},
		{name: "boot origin", cmdline: "systemd.pull=raw,machine,bootorigin:foo:disk.raw", want: []Pull{
			{Kind: transfer.PullRaw, Class: image.ClassMachine, Local: "foo", Remote: "http://boot/dir/disk.raw", Verify: transfer.VerifySignature}}},
		{name: "unknown options are passed over", cmdline: "systemd.pull=raw,machine,shiny,verify=maybe:foo:https://x/y.raw", warnings: 2, want: []Pull{
			{Kind: transfer.PullRaw, Class: image.ClassMachine, Local: "foo", Remote: "https://x/y.raw", Verify: transfer.VerifySignature}}},
		{name: "no class", cmdline: "systemd.pull=raw:foo:https://x/y.raw", warnings: 1},
		{name: "no type", cmdline: "systemd.pull=machine:foo:https://x/y.raw", warnings: 1},
		{name: "no URL", cmdline: "systemd.pull=raw,machine:foo", warnings: 1},
		{name: "another scheme", cmdline: "systemd.pull=raw,machine:foo:ftp://x/y.raw", warnings: 1},
		{name: "bad name", cmdline: "systemd.pull=raw,machine:../foo:http://x/y.raw", warnings: 1},
		{name: "a tree is no block device", cmdline: "systemd.pull=tar,machine,blockdev:foo:http://x/y.tar", warnings: 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			warnings := 0
			c := Config{Initrd: test.initrd, Warn: func(error) { warnings++ }, Origin: func() (string, error) { return "http://boot/dir/uki.efi", nil }}
			got := c.Parse(test.cmdline)
			if len(got) != len(test.want) || warnings != test.warnings {
				t.Fatalf("got %+v with %d warnings, want %+v with %d", got, warnings, test.want, test.warnings)
			}
			for i := range got {
				if got[i] != test.want[i] {
					t.Errorf("got %+v, want %+v", got[i], test.want[i])
				}
			}
		})
	}
}

func TestParseCredential(t *testing.T) {
	c := Config{Warn: func(err error) { t.Error(err) }}
	got := c.ParseCredential("# comment\n\n tar,machine:a:http://x/a.tar\nraw,sysext::http://x/b.raw.zst\n")
	if len(got) != 2 || got[0].Local != "a" || got[1].Local != "b" {
		t.Errorf("got %+v", got)
	}
	c = Config{Warn: func(error) {}, Origin: func() (string, error) { return "", errors.New("no EFI") }}
	if got := c.ParseCredential("raw,machine,bootorigin:a:b.raw"); len(got) != 0 {
		t.Errorf("without an origin: %+v", got)
	}
}

func TestUnits(t *testing.T) {
	c := Config{LoopUnit: true, Warn: func(err error) { t.Error(err) }}
	pulls := c.Parse(`systemd.pull.success_action=poweroff systemd.pull=raw,sysext,ro,blockdev,verify=no:"a%b c":https://x/a%20b.raw systemd.pull=tar,machine:t:file:///t.tar`)
	files := map[string]File{}
	for _, f := range c.Units(pulls, "/usr/lib/systemd/systemd-pull") {
		files[f.Name] = f
	}
	text := files["import0.service"].Text
	for _, want := range []string{
		"Description=Download of https://x/a%%20b.raw\n", "SuccessAction=poweroff\n", "After=network-online.target\n",
		"RequiresMountsFor=/var/lib/extensions\n",
		`Before=imports.target shutdown.target systemd-sysext.service systemd-loop@var-lib-extensions-a\x25b\x20c.raw.service` + "\n",
		`ExecStart=:"/usr/lib/systemd/systemd-pull" "--class=sysext" "--image-root=/var/lib/extensions" "--verify=no" "--keep-download=no" "--read-only" "raw" "--" "https://x/a%%20b.raw" "a%%b c"` + "\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if strings.Contains(files["import1.service"].Text, "network-online") {
		t.Error("a file waits for the network")
	}
	for name, target := range map[string]string{
		"imports.target.wants/import0.service": "../import0.service", "imports.target.wants/import1.service": "../import1.service",
		`imports.target.wants/systemd-loop@var-lib-extensions-a\x25b\x20c.raw.service`: "/usr/lib/systemd/system/systemd-loop@.service",
	} {
		if files[name].Target != target {
			t.Errorf("link %s: got %q, want %q", name, files[name].Target, target)
		}
	}
}
