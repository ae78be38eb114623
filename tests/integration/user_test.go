//go:build integration

package integration

import (
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// userBus is what the package dbus-user-session has, which the hosts lack.
const userBus = `mkdir -p /etc/systemd/user/sockets.target.wants
printf '[Socket]\nListenStream=%%t/bus\n' >/etc/systemd/user/dbus.socket
printf '[Unit]\nRequires=dbus.socket\n[Service]\nType=notify\nExecStart=/usr/bin/dbus-daemon --session --address=systemd: --nofork --nopidfile --systemd-activation\n' >/etc/systemd/user/dbus.service
ln -sf ../dbus.socket /etc/systemd/user/sockets.target.wants/
systemctl start user@$(id -u alice).service
`

// TestUserInstance has a user's service manager start the user's own machined
// by a first call, and goes through the life of machines there. The system's
// instance hears of those alone that are registered there as well.
func TestUserInstance(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.Shell(t, userBus)
		as := func(script string) host.Result {
			t.Helper()
			return h.TryAs("alice", "sh", "-c", `export XDG_RUNTIME_DIR=/run/user/$(id -u) DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$(id -u)/bus HOME=/home/alice
m() { method=$1; shift; busctl --user call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager $method "$@"; }
cd /tmp; `+script)
		}
		must := func(script string, want ...string) string {
			t.Helper()
			r := as(script)
			if r.Exit != 0 {
				t.Fatal(r)
			}
			match(t, r.Stdout, want...)
			return r.Stdout
		}
		h.Shell(t, "install -d -o alice -g alice /home/alice")
		host.Eventually(t, 20*time.Second, func() error { return exitError(as("systemctl --user is-system-running --wait")) })
		must("m ListMachines", `^a\(ssso\) 0$`) // there is no .host
		must(`systemd-run --user -q --unit=leader sleep 1000000
m RegisterMachine sayssus mine 0 test container $(systemctl --user show -p MainPID --value leader.service) /`, `machine/mine`)
		must("sleep 1000000 </dev/null >/dev/null 2>&1 & m CreateMachine 'sayssusa(sv)' made 0 test container $! / 0", `machine/made`)
		// As unprivileged spawners do, in both instances; in the system's, what is not one's own is refused.
		h.WriteFile(t, "/etc/polkit-1/rules.d/10-register.rules", `polkit.addRule(function(a, s) {
	if (a.id == "org.freedesktop.machine1.register-machine" && s.user == "alice") return polkit.Result.YES; });
`, 0o644)
		const system = "busctl --system call " + busName + " " + busPath + " " + managerIf + " RegisterMachine sayssus "
		host.Eventually(t, 10*time.Second, func() error {
			return exitError(as(system + `mine 0 test container $(systemctl --user show -p MainPID --value leader.service) ""`))
		})
		if r := as(system + `other 0 test container $(pgrep -o polkitd) ""`); r.Exit == 0 || !strings.Contains(r.Stderr, "ccess denied") {
			t.Errorf("another user's process: %v", r)
		}
		if names := machines(t, h); len(names) != 1 || names[0] != "mine" {
			t.Errorf("the system's instance has %v, want mine", names)
		}
		must("m ListMachines", `"made".*"mine"`)
		must("machinectl --user --no-pager --no-legend list", `^made +container +test`, `^mine +container +test`)
		must("machinectl --user show made -p Unit -p State", `^Unit=machine-made\.scope$`, `^State=running$`)
		must("cat $XDG_RUNTIME_DIR/systemd/machines/mine", `^NAME=mine$`, `^SCOPE=leader\.service$`)
		must("systemctl --user is-active machine-made.scope", `^active$`)
		if r := as("m RegisterMachine sayssus one 0 test container 1 /"); r.Exit == 0 {
			t.Errorf("PID 1 as leader: %v", r)
		}
		must("systemctl --user restart systemd-machined.service; m ListMachines", `"made".*"mine"`)
		// Files of a machine in the user's own namespaces come and go, as the user's.
		must(`systemd-run --user -q --unit=spaces -p Delegate=yes unshare -Urpf --mount-proc --kill-child sleep 1000000
until L=$(pgrep -P $(systemctl --user show -p MainPID --value spaces)); do sleep 0.1; done; m RegisterMachine sayssus spaces 0 test container $L ""
echo sent >/tmp/sent; machinectl --user copy-to spaces /tmp/sent /tmp/received && machinectl --user copy-from spaces /etc/hostname /tmp/name && cat /tmp/received && stat -c %U /tmp/received /tmp/name
m OpenMachinePTY s spaces; m GetMachineOSRelease s spaces; m MapFromMachineUser su spaces 0`, `^sent\nalice\nalice$`, `/dev/pts/`, `"ID" "debian"`, `^u 1000$`)
		must("machinectl --user kill -s KILL spaces")
		must("machinectl --user terminate made; machinectl --user terminate mine")
		host.Eventually(t, 10*time.Second, func() error {
			r := as("machinectl --user --no-pager list")
			if !strings.Contains(r.Stdout, "No machines.") {
				return exitError(host.Result{Exit: 1, Stdout: r.Output()})
			}
			return nil
		})
		must("ls $XDG_RUNTIME_DIR/systemd/machines", `^$`)
		must("mkdir -p ~/.local/state/machines/one/usr; machinectl --user --no-pager --no-legend list-images", `^one +directory`)
		must("machinectl --user clone one two && machinectl --user rename two three && machinectl --user remove one; machinectl --user --no-pager --no-legend list-images", `^three +directory`)
		waitGone(t, h) // in the system's instance, too
		userTransfers(t, h, must, as)
	})
}

// userTransfers takes images in and out of the user's own places, without any right.
func userTransfers(t *testing.T, h *host.Host, must func(string, ...string) string, as func(string) host.Result) {
	t.Helper()
	// Owners, devices, a directory that its owner may not write to, a set-UID program.
	h.Shell(t, `rm -rf /tmp/t; mkdir -p /tmp/t/etc/locked /tmp/t/usr/lib; cd /tmp/t; echo ID=x >usr/lib/os-release; echo x >etc/locked/file; mknod etc/null c 1 3
chown -R 1:1 usr; chmod 555 etc/locked; chmod 4755 usr/lib/os-release; ln -s locked etc/link
tar -czf /tmp/t.tar.gz -C /tmp/t .; truncate -s 3M /tmp/d.raw; echo data | dd of=/tmp/d.raw conv=notrunc; rm etc/null; chmod 644 /tmp/t.tar.gz /tmp/d.raw`)
	must("importctl --user list-transfers", `^No transfers\.$`)
	must("importctl --user -m import-tar /tmp/t.tar.gz tree 2>&1", `1 device nodes are left out`, `Operation completed successfully\.`)
	must("cd ~/.local/state/machines/tree; stat -c '%n %U %a' etc/locked usr/lib/os-release; cat etc/link/file; ls etc",
		`^etc/locked alice 555$`, `^usr/lib/os-release alice 4755$`, `^x$`)
	must("importctl --user -m import-raw /tmp/d.raw disk 2>&1; importctl --user -m import-fs /tmp/t copied 2>&1; cmp /tmp/d.raw ~/.local/state/machines/disk.raw; cat ~/.local/state/machines/copied/etc/locked/file", `^x$`)
	must("importctl --user -m pull-raw --verify=no file:///tmp/d.raw pulled 2>&1; importctl --user -S --read-only pull-raw --verify=no file:///tmp/d.raw ext 2>&1; ls ~/.local/state/extensions", `^ext\.raw$`)
	must("importctl --user list-images --no-legend", `^machine +disk +raw +/home/alice/\.local/state/machines/disk\.raw +rw`, `^sysext +ext +raw .* ro`)
	must("importctl --user -m export-tar tree /tmp/out.tar 2>&1; tar --numeric-owner -tvf /tmp/out.tar; importctl --user -m export-raw disk - | cmp - /tmp/d.raw", ` 0/0 .* \./etc/locked/file$`)
	must("importctl --user -m --force import-tar /tmp/t.tar.gz tree 2>&1; machinectl --user remove tree copied disk pulled; rm -f /tmp/out.tar", `Operation completed successfully\.`)
	must("ls -A ~/.local/state/machines | grep -v -e three -e '^.raw-' || echo none", `^none$`)
	if r := as("importctl --user -m import-tar /etc/hostname bad"); r.Exit != 1 || !strings.Contains(r.Stderr, "it is no tar archive") {
		t.Errorf("a bad archive: %v", r)
	}
	must(`sleep 10 2>/dev/null | importctl --user -m import-tar - slow >/dev/null 2>&1 &
for i in $(seq 100); do id=$(importctl --user list-transfers --no-legend | awk '{print $1}'); [ -n "$id" ] && break; sleep 0.05; done
importctl --user cancel-transfer $id; for i in $(seq 100); do importctl --user list-transfers | grep -q 'No transfers' && break; sleep 0.05; done; importctl --user list-transfers`, `^No transfers\.$`)
	if out := h.MustRun(t, "importctl", "list-transfers"); !strings.Contains(out, "No transfers") {
		t.Errorf("in the system's instance: %s", out)
	}
	if h.Suite == host.Trixie {
		must("varlinkctl info $XDG_RUNTIME_DIR/systemd/io.systemd.Import", `io\.systemd\.Import`)
	}
}
