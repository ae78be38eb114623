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
	})
}
