//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// TestBadLookups asks every method for what is not there; stock's error names, as
// IMPL=stock proves, and a message that names the thing.
func TestBadLookups(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		before := snapshot(t, h)
		conn := h.Bus(t)
		table := []struct {
			method string
			args   []any
			want   string
		}{
			{"GetMachine", []any{"nope"}, errNoSuchMachine},
			{"GetMachine", []any{"../x"}, errNoSuchMachine},
			{"GetMachine", []any{strings.Repeat("x", 300)}, errNoSuchMachine},
			{"GetMachineByPID", []any{uint32(2)}, ""},
			{"GetMachineByPID", []any{uint32(4194000)}, ""},
			{"TerminateMachine", []any{"nope"}, errNoSuchMachine},
			{"KillMachine", []any{"nope", "all", int32(9)}, errNoSuchMachine},
			{"UnregisterMachine", []any{"nope"}, errNoSuchMachine},
			{"GetMachineAddresses", []any{"nope"}, errNoSuchMachine},
			{"GetMachineOSRelease", []any{"nope"}, errNoSuchMachine},
			{"GetMachineUIDShift", []any{"nope"}, errNoSuchMachine},
			{"OpenMachinePTY", []any{"nope"}, errNoSuchMachine},
			{"OpenMachineLogin", []any{"nope"}, errNoSuchMachine},
			{"OpenMachineShell", []any{"nope", "", "", []string{}, []string{}}, errNoSuchMachine},
			{"OpenMachineRootDirectory", []any{"nope"}, errNoSuchMachine},
			{"BindMountMachine", []any{"nope", "/etc", "/mnt", false, false}, errNoSuchMachine},
			{"CopyFromMachine", []any{"nope", "/etc", "/tmp/x"}, errNoSuchMachine},
			{"CopyToMachine", []any{"nope", "/etc", "/tmp/x"}, errNoSuchMachine},
			{"MapFromMachineUser", []any{"nope", uint32(0)}, errNoSuchMachine},
			{"MapFromMachineGroup", []any{"nope", uint32(0)}, errNoSuchMachine},
			{"MapToMachineUser", []any{uint32(0)}, busName + ".NoSuchUserMapping"},
			{"MapToMachineGroup", []any{uint32(0)}, busName + ".NoSuchGroupMapping"},
			{"GetImage", []any{"nope"}, errNoSuchImage},
			{"RemoveImage", []any{"nope"}, errNoSuchImage},
			{"RemoveImage", []any{"../x"}, errInvalidArgs},
			{"GetImage", []any{"../x"}, errNoSuchImage}, // alone in this
			{"MarkImageReadOnly", []any{"../x", true}, errInvalidArgs},
			{"SetImageLimit", []any{"../x", uint64(1 << 30)}, errInvalidArgs},
			{"RenameImage", []any{"../x", "other"}, errInvalidArgs},
			{"CloneImage", []any{"../x", "other", false}, errInvalidArgs},
			{"GetImageHostname", []any{"../x"}, errInvalidArgs},
			{"GetImageMachineID", []any{"../x"}, errInvalidArgs},
			{"GetImageMachineInfo", []any{"../x"}, errInvalidArgs},
			{"GetImageOSRelease", []any{"../x"}, errInvalidArgs},
			{"RemoveImage", []any{""}, errInvalidArgs},
			{"RenameImage", []any{"nope", "other"}, errNoSuchImage},
			{"RenameImage", []any{"bb", "../x"}, errInvalidArgs},
			{"RenameImage", []any{"bb", "bb"}, "org.freedesktop.DBus.Error.FileExists"},
			{"CloneImage", []any{"nope", "other", false}, errNoSuchImage},
			{"CloneImage", []any{"bb", "../x", false}, errInvalidArgs},
			{"CloneImage", []any{"bb", "bb", false}, "org.freedesktop.DBus.Error.FileExists"},
			{"MarkImageReadOnly", []any{"nope", true}, errNoSuchImage},
			{"SetImageLimit", []any{"nope", uint64(1 << 30)}, errNoSuchImage},
			{"GetImageHostname", []any{"nope"}, errNoSuchImage},
			{"GetImageMachineID", []any{"nope"}, errNoSuchImage},
			{"GetImageMachineInfo", []any{"nope"}, errNoSuchImage},
			{"GetImageOSRelease", []any{"nope"}, errNoSuchImage},
			{"CleanPool", []any{"bogus"}, errInvalidArgs},
		}
		for _, c := range table {
			name, text := errorName(call(conn, c.method, c.args...).Err)
			what := c.method + fmt.Sprint(c.args)
			if name == "" {
				t.Errorf("%s: no error", what)
				continue
			}
			if c.want != "" && name != c.want {
				t.Errorf("%s: got %s (%q), want %s", what, name, text, c.want)
			}
			if thing, ok := c.args[0].(string); ok && strings.Contains(name, ".NoSuch") && !strings.Contains(text, thing[:min(len(thing), 64)]) {
				t.Errorf("%s: message %q does not name %q", what, text, thing)
			}
		}
		unchanged(t, h, before)
		if images := h.MustRun(t, "machinectl", "list-images", "--no-legend", "--no-pager"); !strings.HasPrefix(strings.TrimSpace(images), "bb ") || strings.Count(images, "\n") != 1 {
			t.Errorf("images: got %q, want bb alone", images)
		}
	})
}

// TestBadClientInput types what clients refuse, or the daemon for them. Ours
// exits as stock does, in the same host.
func TestBadClientInput(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		before := snapshot(t, h)
		for _, argv := range [][]string{
			{"status", "nope"}, {"status", "../x"}, {"show", "nope"}, {"start", "nope"}, {"start", "../x"}, {"start", strings.Repeat("x", 65)},
			{"start"}, {"poweroff", "nope"}, {"reboot", "nope"}, {"terminate", "nope"}, {"kill", "nope"},
			{"enable", "../x"}, {"shell", "nope"}, {"login", "nope"},
			{"image-status", "nope"}, {"show-image", "nope"}, {"remove", "nope"}, {"rename", "nope", "other"}, {"rename", "bb"},
			{"clone", "nope", "other"}, {"clone", "bb", "../x"}, {"clone", "bb", "bb"}, {"read-only", "nope"}, {"read-only", "bb", "perhaps"},
			{"set-limit", "nope", "1G"}, {"set-limit", "bb", "a lot"},
			{"copy-to", "nope", "/etc/hostname", "/tmp/x"}, {"copy-from", "nope", "/etc/hostname", "/tmp/x"}, {"bind", "nope", "/etc", "/mnt"},
			{"bogus-verb"}, {"list", "--bogus-option"}, {"list", "--output=bogus"}, {"list", "surplus"},
			{"kill", "--signal=BOGUS", "nope"}, {"kill", "--kill-whom=bogus", "nope"}, {"list", "--max-addresses=many"},
			{"--host=", "list"}, {"--machine=nope", "list"}, {"cancel-transfer", "4711"}, {"cancel-transfer", "x"},
		} {
			t.Run(strings.Join(argv, " "), func(t *testing.T) {
				got := h.Try(append([]string{"machinectl", "--no-pager"}, argv...)...)
				want := got
				if h.Impl == host.Ours {
					want = h.Try(append([]string{h.Stock("machinectl"), "--no-pager"}, argv...)...)
				}
				if got.Exit != want.Exit {
					t.Errorf("exit status differs from stock's: got %v\nwant %v", got, want)
				}
				if got.Exit != 0 && strings.TrimSpace(got.Stderr) == "" {
					t.Errorf("no message: %v", got)
				}
			})
		}
		h.Try("systemctl", "reset-failed")
		unchanged(t, h, before)
	})
}

// TestHostileRelease has machine and image put things in the place of
// os-release that lead a careless reader into the host's files, or nowhere:
// no client shows the host's, none hangs, and list and status go on.
func TestHostileRelease(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "evil")
		conn := h.Bus(t)
		const secret = "STOLEN_FROM_HOST"
		h.WriteFile(t, "/etc/secret-os-release", "ID="+secret+"\n"+secret+"=1\n", 0o600)
		h.Start(t, "systemd-nspawn", "-q", "-M", "evil", "sleep", "1000000")
		waitMachine(t, h, "evil")
		for _, c := range []struct {
			what, script string
			stockHangs   bool
		}{
			{what: "absolute link", script: "ln -s /etc/secret-os-release etc/os-release"},
			{what: "climbing link", script: "ln -s ../../../../../../../../etc/secret-os-release etc/os-release"},
			{what: "link by proc", script: "ln -s /proc/1/root/etc/secret-os-release etc/os-release"},
			{what: "loop of links", script: "ln -s os-release etc/os-release"},
			{what: "linked folder", script: "mv etc etc.real; ln -s /etc etc; mv usr/lib usr/lib.real; ln -s /etc usr/lib"},
			{what: "pipe", script: "mkfifo etc/os-release", stockHangs: true},
			{what: "folder", script: "mkdir etc/os-release"},
			{what: "device", script: "mknod etc/os-release c 1 5"},
			{what: "binary file", script: "head -c 4096 /dev/urandom >etc/os-release"},
			{what: "large file", script: "truncate -s 1G etc/os-release"},
			{what: "no end of line", script: "printf 'ID=evil\\nNAME=\"open' >etc/os-release"},
		} {
			if c.stockHangs && h.Impl == host.Stock {
				continue
			}
			t.Run(c.what, func(t *testing.T) {
				h.Shell(t, `cd /var/lib/machines/evil
for d in etc usr/lib; do [ ! -d $d.real ] || { rm -rf $d; mv $d.real $d; }; done
rm -rf etc/os-release usr/lib/os-release; `+c.script)
				for _, m := range []string{"GetMachineOSRelease", "GetImageOSRelease"} {
					start := time.Now()
					reply := call(conn, m, "evil")
					if took := time.Since(start); took > 10*time.Second {
						t.Errorf("%s took %v", m, took)
					}
					if text := fmt.Sprint(reply.Body, reply.Err); strings.Contains(text, secret) {
						t.Errorf("%s shows a file of the host: %s", m, text)
					}
				}
				for which, client := range clients(h) {
					for _, verb := range [][]string{{"list"}, {"status", "evil"}, {"image-status", "evil"}} {
						r := h.Try(append([]string{client, "--no-pager"}, verb...)...)
						if r.Exit != 0 || !strings.Contains(r.Stdout, "evil") || strings.Contains(r.Output(), secret) {
							t.Errorf("%s client: %v", which, r)
						}
						if r.Took > 20*time.Second {
							t.Errorf("%s client: %v took %v", which, verb, r.Took)
						}
					}
				}
			})
		}
		t.Run("order and quotes", func(t *testing.T) {
			h.Shell(t, "mkdir -p /var/lib/machines/plain/usr/lib; for d in etc usr/lib; do cd /var/lib/machines/evil; [ ! -d $d.real ] || { rm -rf $d; mv $d.real $d; }; done; rm -rf /var/lib/machines/evil/etc/os-release")
			h.WriteFile(t, "/var/lib/machines/evil/etc/os-release", "NAME=Foo Bar  \n# no\nID=first\nB='si\\ngle' tail\nID=second\nA=\"x\"y\"z\"\nM=\"two\nlines\"\n", 0o644)
			h.MustRun(t, "cp", "/var/lib/machines/evil/etc/os-release", "/var/lib/machines/plain/usr/lib")
			for m, name := range map[string]string{"GetMachineOSRelease": "evil", "GetImageOSRelease": "plain"} {
				const want = `a{ss} 5 "NAME" "Foo Bar" "ID" "second" "B" "si\\ngletail" "A" "xy\"z\"" "M" "two\nlines"`
				if got := h.MustRun(t, "busctl", "call", busName, busPath, managerIf, m, "s", name); got != want+"\n" {
					t.Errorf("%s: got %s, want %s", m, got, want)
				}
			}
		})
	})
}

// TestBadStart starts machines that cannot live, through the daemon.
func TestBadStart(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "dies")
		h.Shell(t, `printf '#!/bin/sh\nexit 3\n' >/var/lib/machines/dies/sbin/init; mkdir -p /var/lib/machines/hollow`)
		before := snapshot(t, h)
		for which, client := range clients(h) {
			for _, m := range []string{"hollow", "nope", "dies"} {
				t.Run(which+"/"+m, func(t *testing.T) {
					r := h.Try(client, "start", m)
					// Where init runs before it dies, both answers are right; stock 257 starts the unit of a tree without a system, too.
					if h.Impl == host.Ours && which == "installed" && m != "dies" && (r.Exit == 0 || !strings.Contains(r.Stderr, m)) {
						t.Errorf("start of %q: %v", m, r)
					}
					waitGone(t, h)
					h.Try("systemctl", "stop", "systemd-nspawn@"+m+".service")
					h.Try("systemctl", "reset-failed")
					unchanged(t, h, before)
				})
			}
		}
	})
}

// TestBusyImage takes an image that is in use.
func TestBusyImage(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		p := h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "sleep", "1000000")
		waitMachine(t, h, "bb")
		before := snapshot(t, h)
		for _, argv := range [][]string{
			{"systemd-nspawn", "-M", "bb", "true"},
			{h.Stock("systemd-nspawn"), "-M", "bb", "true"},
			{"machinectl", "remove", "bb"},
			{"machinectl", "rename", "bb", "cc"},
		} {
			r := h.Try(argv...)
			if r.Exit == 0 || !strings.Contains(strings.ToLower(r.Stderr), "busy") {
				t.Errorf("an image in use: %v", r)
			}
		}
		if !p.Running() {
			t.Errorf("the machine died: %s", p.Output())
		}
		unchanged(t, h, before)
	})
}
