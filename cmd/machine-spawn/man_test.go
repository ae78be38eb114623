package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"machined/spawn/settings"
)

func manual(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile("../../man/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(data), `\-`, "-")
}

// Every option that is not refused is in the manual, and the manual has no other.
func TestManualOptions(t *testing.T) {
	c, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	accepted := map[string]bool{}
	c.fs.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			accepted[f.Name] = true
		}
	})
	described := map[string]bool{}
	heads := regexp.MustCompile(`(?m)^\.IP "\\fB(.*)\\fR"`)
	option := regexp.MustCompile(`--([a-z0-9-]+)`)
	for _, head := range heads.FindAllStringSubmatch(manual(t, "systemd-nspawn.1"), -1) {
		for _, name := range option.FindAllStringSubmatch(head[1], -1) {
			described[name[1]] = true
		}
	}
	for name := range accepted {
		if !described[name] {
			t.Errorf("--%s is not in systemd-nspawn(1)", name)
		}
	}
	for name := range described {
		if !accepted[name] {
			t.Errorf("systemd-nspawn(1) has --%s, which the program has not", name)
		}
	}
}

func TestManualKeys(t *testing.T) {
	text := manual(t, "systemd.nspawn.5")
	plain := strings.ReplaceAll(text, `\fB`, " ")
	known := map[string]bool{}
	for _, key := range settings.Keys() {
		_, name, _ := strings.Cut(key, ".")
		known[name] = true
		if !regexp.MustCompile(`\b` + name + `=`).MatchString(plain) {
			t.Errorf("%s= is not in systemd.nspawn(5)", name)
		}
	}
	heads := regexp.MustCompile(`(?m)^\.IP "\\fB(.*)\\fR"`)
	key := regexp.MustCompile(`([A-Za-z]+)=`)
	for _, head := range heads.FindAllStringSubmatch(text, -1) {
		for _, name := range key.FindAllStringSubmatch(head[1], -1) {
			if !known[name[1]] && !strings.HasPrefix(name[1], "Limit") {
				t.Errorf("systemd.nspawn(5) has %s=, which the parser has not", name[1])
			}
		}
	}
}

// Each must be refused, with the option in the message.
func TestGarbage(t *testing.T) {
	for _, arg := range strings.Fields(`
		--root-hash= --root-hash=foo --root-hash-sig= --settings= --settings=foo
		--machine=.. --machine=/ --hostname=.. --uuid= --uuid=foo --uuid=00000000-0000-0000-0000-000000000000
		--slice= --slice=foo.service --property= --property=foo --register= --register=foo --private-users=foo
		--private-users=-1 --private-users=0:0 --private-users=4294967295 --private-users-ownership=
		--private-users-ownership=foo
		--network-veth-extra= --network-bridge= --network-zone= --network-zone=/
		--port= --port=icmp:80 --port=0 --port=65536 --port=tcp: --port=80: --port=a:b --port=-1
		--capability=foo --drop-capability=foo --ambient-capability=foo --no-new-privileges= --no-new-privileges=foo
		--rlimit= --rlimit== --rlimit=foo=1 --rlimit=NOFILE= --rlimit=NOFILE=10:5 --oom-score-adjust=
		--oom-score-adjust=1001 --cpu-affinity=foo --personality= --personality=foo --resolv-conf=
		--resolv-conf=foo --timezone= --timezone=foo --link-journal= --link-journal=foo --bind= --bind=:
		--bind=foo --bind-ro= --inaccessible= --inaccessible=foo --tmpfs= --tmpfs=foo --overlay=
		--overlay=/ --overlay=foo --overlay-ro= --bind-user= --bind-user-shell= --console= --console=foo
		--background=foo --set-credential= --set-credential=foo --set-credential=:a --load-credential=
		--load-credential=foo --load-credential=foo:/nix --chdir= --chdir=foo --setenv= --setenv== --user=
		--kill-signal= --kill-signal=foo --notify-ready= --notify-ready=foo --suppress-sync= --suppress-sync=foo
		--system-call-filter=~nope --pivot-root= --pivot-root=foo --volatile= --volatile=-1
		--volatile=foo --selinux-context=a --bind-user=root --boot=foo --foo -7`) {
		_, err := parse([]string{arg, "true"})
		name, _, _ := strings.Cut(arg, "=")
		if err == nil {
			t.Errorf("%s: got no error", arg)
		} else if !strings.Contains(err.Error(), strings.TrimLeft(name, "-")) {
			t.Errorf("%s: the message does not name the option: %v", arg, err)
		}
	}
	for _, arg := range []string{"-M", "-D", "-i", "-u", "-S", "-p", "-E", "--bind", "--port", "--machine"} {
		if _, err := parse([]string{arg}); err == nil {
			t.Errorf("%s without its argument: got no error", arg)
		}
	}
}
