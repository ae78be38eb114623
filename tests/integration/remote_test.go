//go:build integration

package integration

import (
	"strings"
	"testing"

	"machined/tests/host"
)

// stdioSSH takes the place of ssh(1): it runs what it is told here, and notes how it was called.
const stdioSSH = `#!/bin/sh
echo "ssh $*" >>/tmp/ssh.log
while [ $# -gt 0 ]; do
	case $1 in
	-p) shift 2 ;;
	--) shift; break ;;
	-*) shift ;;
	*) break ;;
	esac
done
shift
exec sh -c "$*"
`

// sshToSelf lets root of the host reach it by ssh without a question.
const sshToSelf = `
mkdir -p /root/.ssh /run/sshd
ssh-keygen -A >/dev/null
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys
sed 's/^/localhost /' /etc/ssh/ssh_host_ed25519_key.pub >/root/.ssh/known_hosts
systemctl start ssh.service
ssh root@localhost true
`

// TestRemote: clients on another host, which is this one, and in sessions of
// other users, ours and stock's, at ours and at stock's daemon.
func TestRemote(t *testing.T) {
	for _, suite := range host.Suites {
		t.Run(string(suite), func(t *testing.T) {
			t.Parallel()
			real := suite == host.Trixie
			h := host.Boot(t, host.Config{Suite: suite, Clients: real})
			if real {
				h.Shell(t, sshToSelf)
			} else {
				h.WriteFile(t, "/usr/local/bin/ssh", stdioSSH, 0o755)
			}
			h.Shell(t, userBus)
			bootMachine(t, h, "deb")
			for client, machinectl := range clients(h) {
				remoteClient(t, h, client, machinectl)
			}
			for _, c := range []struct{ script, want string }{
				{"systemctl -H root@localhost is-system-running", `^running$`},
				{"systemctl -H localhost/deb is-system-running", `^(running|degraded)$`},
				{"busctl -H localhost call " + busName + " " + busPath + " " + managerIf + " GetMachine s deb", `^o "/org/freedesktop/machine1/machine/deb"$`},
				{"busctl -H localhost/deb status org.freedesktop.systemd1", `(?i)pid=1`},
				{"loginctl -H localhost/deb list-users --no-pager", `USER|users? listed`},
			} {
				t.Run(c.script, func(t *testing.T) {
					r := h.Try("sh", "-c", c.script+" </dev/null")
					if r.Exit != 0 {
						t.Fatal(r)
					}
					match(t, r.Stdout, c.want)
				})
			}
			if !real && h.Impl == host.Ours {
				match(t, h.MustRun(t, "cat", "/tmp/ssh.log"),
					`^ssh -xT -- root@localhost systemd-stdio-bridge$`,
					`^ssh -xT -p 22 -- localhost systemd-stdio-bridge$`,
					`^ssh -xT -- localhost systemd-stdio-bridge --machine='?deb'?$`)
			}
		})
	}
}

func remoteClient(t *testing.T, h *host.Host, client, machinectl string) {
	newest := client == "installed" && h.Impl == host.Ours
	for _, c := range []struct {
		args, want string
		fails      bool
	}{
		{args: "-H root@localhost list", want: `^deb +container +systemd-nspawn +debian +` + version(h.Suite)},
		{args: "-H localhost:22 status deb -n 0", want: `^\t  Leader: [0-9]+`},
		{args: "-H localhost show deb -p Name -p Class", want: `^Class=container$`},
		{args: "-H localhost show -p PoolPath --value", want: `^/var/lib/machines$`},
		{args: "-H localhost list-images", want: `^deb +directory`},
		{args: "-H localhost copy-to deb /etc/hostname /root/of-host-" + client},
		{args: "-H localhost clone deb remote-" + client},
		{args: "-H localhost rename remote-" + client + " far-" + client},
		{args: "-H localhost remove far-" + client},
		{args: "-H localhost enable deb"},
		{args: "-H localhost disable deb"},
		{args: "-H localhost start nope", want: `^Machine image 'nope' does not exist\.$`, fails: true},
		{args: "-H localhost shell deb /bin/true", want: `^Shell only supported on local machines\.$`, fails: true},
		{args: "-H localhost login deb", want: `^Login only supported on local machines\.$`, fails: true},
		{args: "-H localhost/deb list", want: `^Could not get machines: The name org\.freedesktop\.machine1 was not provided by any \.service files$`, fails: true},
		{args: "-M deb list", want: `^Could not get machines: The name org\.freedesktop\.machine1 was not provided by any \.service files$`, fails: true},
		{args: "-M root@deb list", want: `^Could not get machines: `, fails: true},
		{args: "-M nope list", want: `^Failed to connect to .*bus.*: Host is down$`, fails: true},
		{args: "-M a/b list", want: `^Failed to connect to .*bus.*: Invalid argument$`, fails: true},
		{args: "-M @ list", want: `^Failed to connect to .*bus.*: Invalid argument$`, fails: true},
		{args: "-M .host list", want: `^deb +container`},
		{args: "-M root@ list", want: `^deb +container`},
		{args: "-M alice@ list", want: `^deb +container`},
		{args: "-M alice@.host list", want: `^deb +container`},
		{args: "-M .host status deb -n 0", want: `^\t  Leader: [0-9]+ \(systemd\)$`},
		{args: "-M .host shell deb /bin/echo there", want: `^there\r?$`},
		{args: "-M root@.host shell deb /bin/echo there", want: `^there\r?$`},
		{args: "-M alice@.host shell deb /bin/echo there", want: `Interactive authentication required`, fails: true},
	} {
		t.Run(client+" "+c.args, func(t *testing.T) {
			r := h.Try("sh", "-c", machinectl+" --no-pager --no-ask-password "+c.args+" </dev/null")
			if (r.Exit != 0) != c.fails {
				t.Fatal(r)
			}
			match(t, r.Output(), c.want)
		})
	}
	if !newest {
		return
	}
	h.Shell(t, "tar -cf /some.tar -C /etc hostname")
	over := `Operation not supported`
	if h.Suite == host.Bookworm { // there is no ssh in between
		over = `^$`
	}
	for _, c := range []struct{ args, want string }{
		{"-H localhost exec deb true", `^Exec only supported on local machines\.$`},
		{"-H localhost cat deb", `^Cat is only supported on the host machine\.$`},
		{"-M alice@ cat --runner=vmspawn deb", `^Cat is only supported for --runner=nspawn$`},
		{"-H localhost import-tar /some.tar nothing", over},
		{"--user -H localhost list", `^Failed to connect to user scope bus via SSH transport: Operation not supported$`},
		{"-H 'a b;touch /tmp/planted' list", `^Failed to connect to system scope bus via SSH transport: `},
		{"-H 'localhost/x;touch /tmp/planted' list", `^Failed to connect to system scope bus via SSH transport: `},
	} {
		t.Run(client+" "+c.args, func(t *testing.T) {
			r := h.Try("sh", "-c", "machinectl --no-pager --no-ask-password "+c.args+" </dev/null")
			if (r.Exit != 1) != (c.want == `^$`) {
				t.Fatal(r)
			}
			match(t, r.Output(), c.want)
		})
	}
	if r := h.Try("ls", "/tmp/planted"); r.Exit == 0 {
		t.Error("a host's name was taken as a command")
	}
	t.Run("own daemon of a user", func(t *testing.T) {
		if got := strings.TrimSpace(h.MustRun(t, "machinectl", "--user", "-M", "alice@.host", "show", "-p", "PoolPath", "--value")); got != "/home/alice/.local/state/machines" {
			t.Errorf("pool %q", got)
		}
	})
}
