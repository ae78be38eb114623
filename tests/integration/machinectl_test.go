//go:build integration

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// eachClient runs f with every machinectl of a host, one after another.
func eachClient(t *testing.T, h *host.Host, f func(t *testing.T, client string)) {
	t.Helper()
	for name, client := range clients(h) {
		t.Run(name, func(t *testing.T) { f(t, client) })
	}
}

// TestClientErrors holds the words and the exit status of refusals, which
// scripts look for.
func TestClientErrors(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		h.Start(t, "systemd-nspawn", "-q", "-M", "run", "-D", "/var/lib/machines/bb", "sleep", "1000000")
		waitMachine(t, h, "run")
		table := []struct{ command, want string }{
			{"status nope", "Could not get path to machine: No machine 'nope' known"},
			{"show nope", "Could not get path to machine: No machine 'nope' known"},
			{"poweroff nope", "Could not kill machine: No machine 'nope' known"},
			{"reboot nope", "Could not kill machine: No machine 'nope' known"},
			{"kill nope", "Could not kill machine: No machine 'nope' known"},
			{"terminate nope", "Could not terminate machine: No machine 'nope' known"},
			{"login nope", "Failed to get login PTY: No machine 'nope' known"},
			{"shell nope", "Failed to get shell PTY: No machine 'nope' known"},
			{"shell run relative", "Failed to get shell PTY: Specified path 'relative' is not absolute"},
			{"start nope", "Machine image 'nope' does not exist."},
			{"enable nope", "Machine image 'nope' does not exist."},
			{"start ../x", "Invalid machine name ../x."},
			{"image-status nope", "Could not get path to image: No image 'nope' known"},
			{"show-image nope", "Could not get path to image: No image 'nope' known"},
			{"clone nope x", "Could not clone image: No image 'nope' known"},
			{"rename nope x", "Could not rename image: No image 'nope' known"},
			{"remove nope", "Could not remove image: No image 'nope' known"},
			{"read-only nope", "Could not mark image read-only: No image 'nope' known"},
			{"read-only bb maybe", "Failed to parse boolean argument: maybe"},
			{"set-limit bb much", "Failed to parse size: much"},
			{"bind nope /etc", "Failed to bind mount: No machine 'nope' known"},
			{"copy-to nope /etc/hostname", "Failed to copy: No machine 'nope' known"},
			{"kill run --signal=NONE", `Failed to parse signal string "NONE".`},
			{"kill run --kill-whom=nobody", "Could not kill machine: Invalid kill parameter 'nobody'"},
			{"list --max-addresses=x", "Invalid number of addresses: x"},
			{"list extra", "Too many arguments."},
			{"status", "Too few arguments."},
			{"list -M nowhere", "Host is down"},
			{"pull-tar ftp://nowhere/x.tar", "URL 'ftp://nowhere/x.tar' is not valid."},
			{"import-tar /nowhere/x.tar", "Failed to open /nowhere/x.tar: No such file or directory"},
			{"cancel-transfer x", "Failed to parse transfer id: x"},
			{"login --uid=root run", "--setenv= and --uid= are not supported for 'login'. Use 'shell' instead."},
		}
		eachClient(t, h, func(t *testing.T, client string) {
			for _, c := range table {
				r := h.Try(append([]string{client}, strings.Fields(c.command)...)...)
				if r.Exit != 1 || !strings.Contains(r.Stderr, c.want) || r.Stdout != "" {
					t.Errorf("machinectl %s: got %v; want status 1 and %q", c.command, r, c.want)
				}
			}
		})
	})
}

// TestClientLists holds the tables in all their forms, with and without
// something to list.
func TestClientLists(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		eachClient(t, h, func(t *testing.T, client string) {
			for command, want := range map[string]string{"list": "No machines.\n", "list --no-legend": "", "list -o json": "[]\n",
				"list-transfers": "No transfers.\n", "list-images": "No images.\n"} {
				if got := h.MustRun(t, append([]string{client}, strings.Fields(command)...)...); got != want {
					t.Errorf("%s of nothing: got %q, want %q", command, got, want)
				}
			}
		})
		h.BusyboxTree(t, "bb")
		h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "sleep", "1000000")
		waitMachine(t, h, "bb")
		h.MustRun(t, "truncate", "-s", "1M", "/var/lib/machines/disk.raw")
		h.MustRun(t, "machinectl", "read-only", "disk", "yes")
		eachClient(t, h, func(t *testing.T, client string) {
			want := "MACHINE CLASS     SERVICE        OS      VERSION ADDRESSES\n" +
				"bb      container systemd-nspawn busybox 1       -\n\n1 machines listed.\n"
			for _, command := range []string{"list", "", "list -q", "list -l"} {
				if got := h.MustRun(t, append([]string{client}, strings.Fields(command)...)...); squeeze(got) != squeeze(want) {
					t.Errorf("%q: got %q, want %q", command, got, want)
				}
			}
			match(t, h.MustRun(t, client, "list", "-a"), `^\.host +host +- +debian +`+version(h.Suite)+` `, `^2 machines listed\.$`)
			var rows []map[string]any
			if err := json.Unmarshal([]byte(h.MustRun(t, client, "list", "-o", "json")), &rows); err != nil || len(rows) != 1 || rows[0]["machine"] != "bb" ||
				rows[0]["class"] != "container" || rows[0]["service"] != "systemd-nspawn" || rows[0]["os"] != "busybox" || rows[0]["version"] != "1" {
				t.Errorf("list -o json: got %v, error %v", rows, err)
			}
			images := h.MustRun(t, client, "list-images")
			match(t, images, `^NAME +TYPE +RO +USAGE +CREATED +MODIFIED *$`, `^bb +directory +no +\w{3} \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \w+ +-`,
				`^disk +raw +yes +\d\S* +\w{3} .*\w{3} \d{4}-`, `^2 images listed\.$`)
			match(t, h.MustRun(t, client, "image-status", "disk"), `^disk$`, `^\t    Type: raw$`, `^\t    Path: /var/lib/machines/disk\.raw$`,
				`^\t      RO: read-only$`, `^\t Created: .* ago$`, `^\t   Limit: 1(\.0)?M$`)
			match(t, h.MustRun(t, client, "show-image", "disk"), `^Name=disk$`, `^Type=raw$`, `^ReadOnly=yes$`, `^Limit=1048576$|^Limit=1M$|^Limit=\d+$`)
			// In the order of the interface, which the bus does not promise.
			if got := h.MustRun(t, client, "show", "bb", "-p", "State", "-p", "Name", "-p", "Class"); got != "Name=bb\nClass=container\nState=running\n" {
				t.Errorf("show of three properties: got %q", got)
			}
			match(t, h.MustRun(t, client, "image-status"), `^\t    Path: /var/lib/machines$`)
			match(t, h.MustRun(t, client, "show"), `^PoolPath=/var/lib/machines$`, `^PoolUsage=`, `^PoolLimit=`)
		})
	})
}

// squeeze makes runs of spaces one, and drops those at line ends: versions pad
// the last column differently.
func squeeze(s string) string {
	return regexp.MustCompile(`(?m) +$`).ReplaceAllString(regexp.MustCompile(` +`).ReplaceAllString(s, " "), "")
}

// TestClientTerminal uses shell and login as a person does.
func TestClientTerminal(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		bootMachine(t, h, "deb")
		eachClient(t, h, func(t *testing.T, client string) {
			t.Run("shell", func(t *testing.T) {
				p := h.StartTTY(t, "", "env", "TERM=vt102", client, "shell", "deb")
				p.Expect(t, "Connected to machine deb. Press ^] three times within 1s to exit session.")
				p.Expect(t, "# ")
				p.Send(t, "echo term=$TERM user=$(id -un) size=$(stty size)\r")
				p.Expect(t, "term=vt102 user=root size=24 80")
				p.Send(t, "exit 7\r")
				p.Expect(t, "Connection to machine deb terminated.")
				// The status of the shell is not passed on, in stock neither.
				if got := p.Wait(t); got != 0 {
					t.Errorf("exit status: got %d", got)
				}
			})
			t.Run("leave", func(t *testing.T) {
				p := h.StartTTY(t, "", client, "shell", "deb", "/bin/sh", "-c", "echo ready; sleep 1000000")
				p.Expect(t, "ready")
				p.Send(t, "\x1d\x1d\x1d")
				p.Expect(t, "Connection to machine deb terminated.")
				p.Wait(t)
			})
			t.Run("user", func(t *testing.T) {
				p := h.StartTTY(t, "", client, "shell", "-E", "COLOUR=blue", "daemon@deb", "/bin/sh", "-c", "echo $(id -un) $HOME $COLOUR")
				p.Expect(t, "daemon /usr/sbin blue")
				p.Expect(t, "Connection to machine deb terminated.")
				p.Wait(t)
			})
			t.Run("no such user", func(t *testing.T) {
				p := h.StartTTY(t, "", client, "shell", "nobody-here@deb")
				p.Expect(t, "Connection to machine deb terminated.")
				p.Wait(t)
			})
			t.Run("host", func(t *testing.T) {
				p := h.StartTTY(t, "", client, "shell", ".host", "/bin/sh", "-c", "hostname")
				p.Expect(t, "Connected to the local host. Press ^] three times within 1s to exit session.")
				p.Expect(t, h.Name)
				p.Expect(t, "Connection to the local host terminated.")
				p.Wait(t)
			})
			t.Run("pipe", func(t *testing.T) {
				r := h.Try(client, "shell", "-q", "deb", "/bin/sh", "-c", "seq 2000; exit 3")
				if r.Exit != 0 || strings.Count(r.Stdout, "\n") != 2000 || !strings.HasSuffix(strings.TrimSpace(r.Stdout), "2000") || r.Stderr != "" {
					t.Errorf("shell -q into a pipe: %d lines, status %d, stderr %q", strings.Count(r.Stdout, "\n"), r.Exit, r.Stderr)
				}
			})
		})
		t.Run("end during login", func(t *testing.T) {
			p := h.StartTTY(t, "", "machinectl", "login", "deb")
			p.Expect(t, "login: ")
			h.MustRun(t, "machinectl", "poweroff", "deb")
			p.Expect(t, "Machine deb terminated.")
			p.Wait(t)
			waitGone(t, h)
		})
	})
}

// TestClientInput feeds a shell from a file, which stock's ignores.
func TestClientInput(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		bootMachine(t, h, "deb")
		h.WriteFile(t, "/tmp/input", "first\nsecond\n", 0o644)
		out := h.Shell(t, "machinectl shell -q deb /bin/sh -c 'stty -echo; while read x; do echo got $x; done' </tmp/input")
		match(t, out, `^got first\r?$`, `^got second\r?$`)
	})
}

// TestClientFiles binds and copies.
func TestClientFiles(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		bootMachine(t, h, "deb")
		h.Shell(t, "mkdir -p /srv/from/sub; echo one >/srv/from/one; echo two >/srv/from/two; ln -s one /srv/from/link; chmod 600 /srv/from/one")
		n := 0
		eachClient(t, h, func(t *testing.T, client string) {
			n++
			dir := fmt.Sprintf("/root/copy%d", n)
			h.MustRun(t, client, "copy-to", "deb", "/srv/from", dir)
			out := h.MustRun(t, client, "shell", "-q", "deb", "/bin/ls", "-ln", dir)
			match(t, out, `^-rw------- +1 +0 +0 .* one\r?$`, `^lrwxrwxrwx .* link -> one\r?$`, `^drwxr-xr-x .* sub\r?$`)
			h.MustRun(t, client, "copy-from", "deb", dir, fmt.Sprintf("/srv/back%d", n))
			if got := h.MustRun(t, "cat", fmt.Sprintf("/srv/back%d/one", n)); got != "one\n" {
				t.Errorf("copied back: got %q", got)
			}
			if r := h.Try(client, "copy-to", "deb", "/srv/from/one", dir+"/one"); r.Exit != 1 || !strings.HasPrefix(r.Stderr, "Failed to copy: ") {
				t.Errorf("copy over a file: %v", r)
			}
			if r := h.Try(client, "bind", "deb", "/srv/from", "relative"); r.Exit != 1 || !strings.HasPrefix(r.Stderr, "Failed to bind mount: ") {
				t.Errorf("bind to a relative path: %v", r)
			}
		})
		if host.DefaultImpl() == host.Stock {
			return // which binds nothing into a machine with user namespaces
		}
		eachClient(t, h, func(t *testing.T, client string) {
			n++
			where := fmt.Sprintf("/mnt/%d", n)
			h.MustRun(t, client, "bind", "--mkdir", "--read-only", "deb", "/srv/from", where)
			if got := h.MustRun(t, client, "shell", "-q", "deb", "/bin/cat", where+"/two"); strings.TrimSpace(got) != "two" {
				t.Errorf("read through a bind mount: got %q", got)
			}
			match(t, h.MustRun(t, "machinectl", "list-binds", "deb"), `^DESTINATION +SOURCE +RO$`, `^`+where+` +/srv/from +yes$`, `^1 binds listed\.$`)
			h.MustRun(t, "machinectl", "unbind", "deb", where)
			if got := h.MustRun(t, "machinectl", "list-binds", "deb"); got != "No binds.\n" {
				t.Errorf("list-binds after unbind: got %q", got)
			}
		})
	})
}

// TestClientImages takes an image through its life.
func TestClientImages(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		eachClient(t, h, func(t *testing.T, client string) {
			h.MustRun(t, client, "clone", "bb", "copy")
			h.MustRun(t, client, "rename", "copy", "other")
			h.MustRun(t, client, "read-only", "other")
			if got := h.MustRun(t, client, "show-image", "other", "-p", "ReadOnly"); got != "ReadOnly=yes\n" {
				t.Errorf("read-only: got %q", got)
			}
			h.MustRun(t, client, "read-only", "other", "no")
			h.MustRun(t, client, "clone", "--read-only", "bb", "ro")
			match(t, h.MustRun(t, client, "list-images", "--no-legend"), `^bb +directory +no`, `^other +directory +no`, `^ro +directory +yes`)
			if r := h.Try(client, "clone", "bb", "other"); r.Exit != 1 || !strings.HasPrefix(r.Stderr, "Could not clone image: ") {
				t.Errorf("clone over an image: %v", r)
			}
			h.MustRun(t, client, "read-only", "ro", "no")
			h.MustRun(t, client, "remove", "other", "ro")
			match(t, h.MustRun(t, client, "list-images"), `^1 images listed\.$`)
		})
		t.Run("of the system", func(t *testing.T) {
			h.Shell(t, "mkdir -p /usr/lib/machines/vendor")
			match(t, h.MustRun(t, "machinectl", "list-images", "--no-legend"), `^vendor +directory +yes`)
			if r := h.Try("machinectl", "read-only", "vendor", "no"); r.Exit != 1 || !strings.HasSuffix(r.Stderr, "Read-only file system\n") {
				t.Errorf("a change of it: %v", r)
			}
			h.Shell(t, "rm -r /usr/lib/machines/vendor")
		})
		t.Run("settings", func(t *testing.T) {
			if host.DefaultImpl() == host.Stock && h.Suite == host.Bookworm {
				t.Skip("systemd 252 has no such verb")
			}
			h.WriteFile(t, "/etc/systemd/nspawn/bb.nspawn", "[Exec]\nBoot=no\n", 0o644)
			want := "# /etc/systemd/nspawn/bb.nspawn\n[Exec]\nBoot=no\n"
			if got := h.MustRun(t, "machinectl", "cat", "bb"); got != want {
				t.Errorf("cat: got %q, want %q", got, want)
			}
			p := h.StartTTY(t, "", "env", "SYSTEMD_EDITOR=sed -i s/no/yes/", "machinectl", "edit", "bb")
			if got := p.Wait(t); got != 0 {
				t.Errorf("edit: status %d", got)
			}
			if got := h.MustRun(t, "cat", "/etc/systemd/nspawn/bb.nspawn"); !strings.Contains(got, "Boot=yes") {
				t.Errorf("edited file: got %q", got)
			}
		})
	})
}

// TestClientRule is the polkit rule of the scenario, as it stands there.
func TestClientRule(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		h.WriteFile(t, "/etc/polkit-1/rules.d/machined.rules", `polkit.addRule(function(action, subject) {
    if (action.id == "org.freedesktop.machine1.manage-images" && subject.isInGroup("users")) {
        return polkit.Result.YES;
    }
});
`, 0o644)
		h.MustRun(t, "systemctl", "restart", "polkit.service")
		eachClient(t, h, func(t *testing.T, client string) {
			for _, command := range []string{"clone bb mine", "rename mine yours", "read-only yours", "read-only yours no", "remove yours"} {
				argv := append([]string{client}, strings.Fields(command)...)
				if r := h.TryAs("bob", argv...); r.Exit != 1 || !strings.Contains(r.Stderr, "nteractive authentication required") {
					t.Errorf("%s by somebody outside the group: %v", command, r)
				}
				if r := h.TryAs("alice", argv...); r.Exit != 0 {
					t.Errorf("%s by a member of the group: %v", command, r)
				}
			}
		})
	})
}

// TestClientPassword lets polkit ask on the terminal.
func TestClientPassword(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		h.Shell(t, "echo alice:secret | chpasswd")
		h.WriteFile(t, "/etc/polkit-1/rules.d/machined.rules", `polkit.addRule(function(action, subject) {
    if (action.id == "org.freedesktop.machine1.manage-images") return polkit.Result.AUTH_SELF;
});
`, 0o644)
		h.MustRun(t, "systemctl", "restart", "polkit.service")
		// polkit asks only who has a session, which this makes.
		p := h.StartTTY(t, "", "machinectl", "shell", "alice@.host")
		p.Expect(t, "$ ")
		for _, client := range clients(h) {
			p.Send(t, client+" clone --no-ask-password bb mine; echo status=$?\r")
			p.Expect(t, "Could not clone image: ")
			p.Expect(t, "status=1")
			before := len(p.Output())
			p.Send(t, client+" clone bb mine; echo status=$?\r")
			p.Expect(t, "AUTHENTICATING FOR org.freedesktop.machine1.manage-images")
			p.Expect(t, "assword: ")
			// The agent throws away what was typed before it had turned echo off,
			// and nothing tells when that is.
			host.Eventually(t, 30*time.Second, func() error {
				if strings.Contains(p.Output()[before:], "AUTHENTICATION COMPLETE") {
					return nil
				}
				p.Send(t, "secret\r")
				return errors.New("not authenticated")
			})
			p.Expect(t, "status=0")
			h.MustRun(t, "machinectl", "remove", "mine")
		}
		p.Send(t, "exit\r")
		p.Wait(t)
	})
}
