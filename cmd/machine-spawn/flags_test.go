package main

import (
	"reflect"
	"strings"
	"testing"
)

// Each option is to refuse values that mean nothing, and empty ones but where
// those take an earlier value back (--directory=, --image=, --machine=).
func TestParseRefuses(t *testing.T) {
	for _, arg := range []string{
		"--machine=../x", "--machine=.x",
		"--machine=" + strings.Repeat("x", 65), "--hostname=foo_bar/", "--uuid=", "--uuid=foo",
		"--settings=foo", "--volatile=-1", "--volatile=foo", "--chdir=relative", "--setenv=", "--setenv==x",
		"--kill-signal=", "--kill-signal=foo", "--notify-ready=foo", "--suppress-sync=foo", "--slice=",
		"--property=", "--property=foo", "--register=foo", "--private-users=foo", "--private-users=0:0",
		"--private-users-ownership=foo",
		"--network-veth-extra=", "--network-bridge=", "--network-zone=", "--network-zone=" + strings.Repeat("z", 20),
		"--port=", "--port=foo", "--port=tcp:0", "--port=-1:7", "--port=99999",
		"--capability=foo", "--drop-capability=foo", "--ambient-capability=foo", "--no-new-privileges=foo",
		"--rlimit==", "--rlimit=foo", "--rlimit=NOFILE=x", "--oom-score-adjust=foo", "--oom-score-adjust=1001",
		"--cpu-affinity=foo", "--personality=", "--personality=foo", "--resolv-conf=foo",
		"--timezone=foo", "--link-journal=foo", "--bind=", "--bind=a:b:c:d", "--bind-ro=", "--tmpfs=relative",
		"--overlay=", "--overlay=x", "--inaccessible=", "--inaccessible=relative", "--console=foo",
		"--set-credential=", "--set-credential=foo", "--load-credential=", "--load-credential=foo", "--no-such-option",
	} {
		t.Run(arg, func(t *testing.T) {
			if _, err := parse([]string{arg}); err == nil {
				t.Errorf("parse(%q) is accepted", arg)
			}
		})
	}
}

// What follows the first word that is no option belongs to the payload.
func TestParseStopsAtCommand(t *testing.T) {
	c, err := parse([]string{"-q", "-M", "box", "-n", "--bind=/srv:/mnt", "ls", "-l", "--boot"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.opts.Args, []string{"ls", "-l", "--boot"}; !reflect.DeepEqual(got, want) {
		t.Errorf("Args = %q, want %q", got, want)
	}
	if got, want := c.opts.Machine, "box"; got != want {
		t.Errorf("Machine = %q, want %q", got, want)
	}
	if !c.opts.Quiet || !c.opts.Veth || len(c.opts.Mounts) != 1 || c.opts.Boot() {
		t.Errorf("options = %+v, want quiet, veth and one mount, no boot", c.opts)
	}
}

// FuzzParse looks for arguments that break the parser.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"-D\x00/srv\x00-b", "--bind=/a\\:b:/c:rbind", "-U\x00-n\x00-p\x00tcp:80:8080", "--rlimit=NOFILE=1:2",
		"--private-users=65536:65536", "--overlay=+/a::/b", "--set-credential=a:\\x41",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.Contains(s, "load-cred") {
			t.Skip("reads files")
		}
		c, err := parse(strings.Split(s, "\x00"))
		if (c == nil) == (err == nil) {
			t.Errorf("parse(%q) = %v, %v: one of both must be nil", s, c, err)
		}
	})
}
