//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// TestNspawnNetworkViews has how much of /proc and /sys is writable, with and
// without cgroup namespaces, for each kind of network and of users; and the
// devices and ports that networks are used with.
func TestNspawnNetworkViews(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		const probe = ` --pipe sh -c 'for f in /proc/sys/kernel/hostname /proc/sys/net/ipv4/ip_forward /proc/sysrq-trigger /sys/fs/cgroup/cgroup.procs; do (exec 3>>$f) 2>/dev/null && echo "$f w" || echo "$f -"; done; grep -q "^0::/$" /proc/self/cgroup && echo own cgroup; ip -o link | sed "s/^[0-9]*: //; s/[@:].*//"'`
		nspawnRows(t, h, []nspawnRow{
			{name: "host's network", script: `$S` + probe, out: []string{`hostname -`, `ip_forward -`, `^own cgroup$`}},
			{name: "private network", script: `$S --private-network` + probe, out: []string{`hostname -`, `ip_forward w`, `^lo$`}, not: []string{`^ve-|^eth|^host0`}},
			{name: "all writable", script: `SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes $S` + probe, out: []string{`hostname w`, `ip_forward w`}},
			{name: "all writable, private network", script: `SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes $S --private-network` + probe, out: []string{`hostname w`, `ip_forward w`}},
			{name: "network writable", script: `SYSTEMD_NSPAWN_API_VFS_WRITABLE=network $S --private-network` + probe, out: []string{`hostname -`, `ip_forward w`}},
			{name: "network writable, nothing of /sys", script: `for n in "" --private-network; do SYSTEMD_NSPAWN_API_VFS_WRITABLE=network $S $n --pipe sh -c 'touch /sys/kernel/uevent_seqnum; grep -E " /(sys|sys/(block|bus|class|dev|devices|kernel)|proc/sys) rw" /proc/self/mountinfo; : >/proc/sys/net/ipv4/ip_forward && echo net'; done`,
				out: []string{`^net\n(.*\n)*net$`, `Read-only`}, not: []string{` rw`}},
			{name: "nothing writable", script: `SYSTEMD_NSPAWN_API_VFS_WRITABLE=no $S --private-network` + probe, out: []string{`hostname -`}},
			{name: "users, all writable", script: `SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes $S -U --private-network true`, exit: 1},
			{name: "users, network writable, host's network", script: `SYSTEMD_NSPAWN_API_VFS_WRITABLE=network $S -U true`, exit: 1},
			{name: "users, network writable", script: `SYSTEMD_NSPAWN_API_VFS_WRITABLE=network $S -U --private-network` + probe, out: []string{`ip_forward w`, `hostname -`}},
			{name: "users", script: `$S -U --private-network` + probe, out: []string{`ip_forward w`, `hostname -`, `^own cgroup$`}},
			{name: "no cgroup namespace", script: `SYSTEMD_NSPAWN_USE_CGNS=0 $S` + probe, not: []string{`^own cgroup$`}, out: []string{`cgroup.procs -`}},
			{name: "no cgroup namespace, private network", script: `SYSTEMD_NSPAWN_USE_CGNS=0 $S --private-network` + probe, not: []string{`^own cgroup$`}},
			{name: "shared namespaces", script: `SYSTEMD_NSPAWN_SHARE_NS_IPC=1 $S --pipe readlink /proc/self/ns/ipc >a; readlink /proc/self/ns/ipc | cmp - a && echo same`, out: []string{`^same$`}},
			{name: "a namespace by path", script: `ip netns add nspn; ip -n nspn link add inner0 type veth peer name inner1; N="$S --network-namespace-path=/run/netns/nspn"
				$N --pipe ip -o link; $N --network-veth true; echo veth $?; $N --private-network --pipe true; echo private $?; ip netns del nspn; umount /run/netns`,
				out: []string{`: lo: .*state DOWN|: lo: <LOOPBACK>`, `inner0`, `^veth 1$`, `^private 0$`}},
			{name: "no namespace at the path", script: `touch f; $S --network-namespace-path=$W/f true; echo file $?; $S --network-namespace-path=/proc/self/ns/mnt true; echo mnt $?`, out: []string{`^file 1$`, `^mnt 1$`}},
			{name: "long names", script: `N="systemd-nspawn -q -D $T --register=no --pipe -n -M a-very-long-machine-name-that-does-not-fit"; mkfifo in; $N sh -c 'echo up; read x' <in >out & exec 3>in; until grep -q up out; do sleep 0.05; done; ip link show dev ve-a-very-long-machine-name-that-does-not-fit; echo >&3; wait`,
				out: []string{`: ve-a-very-l....@`, `altname ve-a-very-long-machine-name-that-does-not-fit`}},
			{name: "hardware address", script: `SYSTEMD_NSPAWN_NETWORK_MAC=02:00:00:01:02:03 $S --pipe -n ip -o link show host0`, out: []string{`02:00:00:01:02:03`}, stock: 257},
			{name: "ports", script: `for p in 8180 tcp:8180 udp:8180:80 8180:80 tcp:8180:80; do $S -n --port=$p true || echo "$p refused"; done`, not: []string{`refused`}},
			{name: "bad ports", script: `for p in "" icmp:80 99999 -1 a:b 0 80:99999 tcp: 80: :80 tcp:80:80:80 65536; do $S -n --port="$p" true 2>/dev/null && echo "$p taken"; done; true`, not: []string{`taken`}},
			{name: "port in the host's network", script: `$S --port=80 true`, exit: 1},
			{name: "an address comes and goes", script: `$S --pipe -n --port=8180 sh -c 'for i in 1 2 3; do ip addr add 192.0.2.$i/24 dev host0; ip addr del 192.0.2.$i/24 dev host0; done; echo alive'`, out: []string{`^alive$`}},
			{name: "bridge and zone", script: `ip link add br9 type bridge; $S --network-bridge=br9 --network-zone=z true; echo both $?; $S --network-bridge=none9 true; echo none $?; $S --pipe --network-bridge=br9 ip -o link; ip link del br9`, out: []string{`^both 1$`, `^none 1$`, `host0`}},
			{name: "tun", script: `stat -c 'was %u %a' /dev/net/tun; $S --pipe stat -c 'in %u %t:%T' /dev/net/tun; $S --pipe -U stat -c 'in %u' /dev/net/tun; stat -c 'is %u %a' /dev/net/tun`, out: []string{`^in 0 a:c8$`, `^in 0$`}},
			{name: "tun without the right to it", script: `systemd-run -q --wait --pipe -p DevicePolicy=closed -p DeviceAllow='char-pts rw' $S --pipe ls /dev/net/tun /dev/fuse`, exit: 1, stock: never},
			{name: "fuse", script: `$S --pipe stat -c '%u %t:%T' /dev/fuse; $S --pipe -U sh -c 'exec 3<>/dev/fuse && echo opened'`, out: []string{`^0 a:e5$`, `^opened$`}, stock: 257},
			{name: "no other devices", script: `$S --pipe ls /dev /dev/char`, not: []string{`loop|kmsg|mem|vda|sda|kvm|input`}},
			{name: "the suite's leftovers", script: `ip -o link | grep -e 've-' -e 'vb-' -e 'vz-'`, exit: 1},
		})
	})
}

// TestNspawnOwnership has how the owners on disk and a machine's users are brought together.
func TestNspawnOwnership(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		const show = ` --pipe sh -c 'stat -c "in %u %g" /etc/passwd /home/user; touch /etc/new && echo wrote'; stat -c 'disk %u' $T/etc/passwd; rm -f $T/etc/new; `
		nspawnRows(t, h, []nspawnRow{
			{name: "off", script: `$S --private-users=131072:65536 --private-users-ownership=off` + show + `true`, out: []string{`^in 65534 65534`, `^disk 0$`}, not: []string{`wrote`}},
			{name: "map", script: `$S --private-users=131072:65536 --private-users-ownership=map` + show, out: []string{`^in 0 0\nin 1000 1000$`, `^wrote$`, `^disk 0$`}},
			{name: "map twice", script: `$S --private-users=196608:65536 --private-users-ownership=map` + show, out: []string{`^in 0 0\nin 1000 1000$`, `^wrote$`, `^disk 0$`}},
			{name: "auto", script: `$S -U` + show, out: []string{`^in 0 0\nin 1000 1000$`, `^wrote$`, `^disk 0$`}},
			{name: "chown", script: `cp -a $T own; chmod u+s own/bin/ls; T=$W/own; S="systemd-nspawn -q --register=no -D $T"
				$S --private-users=131072:65536 --private-users-ownership=chown` + show + `stat -c 'ls %u %a' own/bin/ls own/home/user
				$S --private-users=196608:65536 --private-users-ownership=chown` + show + `$S --private-users=yes` + show + `$S --private-users=0:65536 --private-users-ownership=chown` + show,
				out: []string{`^disk 131072$`, `^ls 131072 4755$`, `^ls 132072 755$`, `^disk 196608$`, `^disk 0$`}, not: []string{`^in 65534`}},
			{name: "the old way to say chown", script: `cp -a $T own; T=$W/own; systemd-nspawn -q --register=no -D $T --private-users=131072:65536 --private-users-chown` + show, out: []string{`^disk 131072$`}},
			{name: "picked range of a shifted tree", script: `cp -a $T own; T=$W/own; S="systemd-nspawn -q --register=no -D $T"; $S --private-users=pick --private-users-ownership=chown` + show + `a=$(stat -c %u own); $S -U` + show + `[ $a = $(stat -c %u own) ] && echo same`, out: []string{`^same$`, `^in 0 0$`}},
			{name: "chown of a read-only tree", script: `$S --private-users=pick --private-users-ownership=chown --read-only true`, exit: 1},
			{name: "chown to a base between ranges", script: `$S --private-users=131073:65536 --private-users-ownership=chown true`, exit: 1},
			{name: "nonsense", script: `for u in nonsense 0:0 131072:x 4294967295:2 -5; do $S --private-users=$u true 2>/dev/null && echo "$u taken"; done; $S --private-users-ownership=mine true`, exit: 1, not: []string{`taken`}},
			{name: "two machines have two ranges", script: `mkfifo in; cp -a $T own; $S -U --pipe sh -c 'cat /proc/self/uid_map; read x' <in >out & exec 3>in; until grep -q 65536 out; do sleep 0.05; done
				systemd-nspawn -q --register=no -U -D $W/own -M bb --pipe cat /proc/self/uid_map >out2; echo >&3; wait; cmp -s out out2 || echo differ`, out: []string{`^differ$`}},
		})
	})
}

// TestNspawnNotify has what a payload tells the service manager, and what the
// spawner tells it.
func TestNspawnNotify(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		// Tells as sd_notify(3) does, from process 1.
		const tell = `python3 -c 'import socket,os,sys,time
s=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM); s.connect(os.environ["NOTIFY_SOCKET"])
for m in sys.argv[1:]: s.sendall(m.encode())
time.sleep(1000)' `
		run := `N="systemd-nspawn -q --register=no --keep-unit -D / --volatile=yes --pipe --kill-signal=SIGKILL"; unit() { systemd-run -q --unit=ntf -p Type=notify -p NotifyAccess=main -p Delegate=yes "$@"; }
			state() { systemctl show -p ActiveState -p StatusText ntf; systemctl stop ntf; systemctl reset-failed ntf 2>/dev/null; }; `
		nspawnRows(t, h, []nspawnRow{
			{name: "ready when the payload says so", script: run + `unit $N --notify-ready=yes ` + tell + `READY=1 "STATUS=hello there"; until systemctl show -p StatusText ntf | grep -q hello; do sleep 0.05; done; state`, out: []string{`^ActiveState=active$`, `^StatusText=Container running: hello there$`}},
			{name: "the same in a user namespace", script: run + `unit $N -U --private-users-ownership=off --notify-ready=yes ` + tell + `READY=1; state`, out: []string{`^ActiveState=active$`}, stock: never},
			{name: "ready at once", script: run + `unit $N sleep 1000; state`, out: []string{`^ActiveState=active$`, `^StatusText=Container running\.$`}},
			{name: "not ready until it is said", script: run + `timeout 1 systemd-run -q --unit=ntf -p Type=notify -p Delegate=yes $N --notify-ready=yes sleep 1000; state`, out: []string{`^ActiveState=activating$`}},
			{name: "only process 1 is heard", script: run + `timeout 2 systemd-run -q --unit=ntf -p Type=notify -p Delegate=yes $N --notify-ready=yes sh -c "` + strings.ReplaceAll(tell, `"`, `\"`) + ` READY=1 & sleep 1000"; state`, out: []string{`^ActiveState=activating$`}},
		})
	})
}

// TestNspawnJournal links journals of machines with the host's.
func TestNspawnJournal(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		const id = "33333333333343338333333333333333"
		// On a file system that owners can be mapped on.
		h.Shell(t, `mkdir -p /var/tmp/journal; mount --bind /var/tmp/journal /var/log/journal`)
		const prepare = `echo ` + id + ` >$T/etc/machine-id; J=/var/log/journal/` + id + `; rm -rf $J $T/var/log/journal; `
		const show = ` --pipe sh -c 'grep -q log/journal/` + id + ` /proc/self/mountinfo && echo mounted; stat -c "in %u" /var/log/journal/` + id + `; echo said >/var/log/journal/` + id + `/x'; [ -L $J ] && echo link; cat $J/x; stat -c 'host %u' $J/; rm -rf $J; rm -f $T/etc/machine-id`
		var rows []nspawnRow
		for _, users := range []string{"no", "yes", "pick"} {
			rows = append(rows, nspawnRow{
				name: "host, users " + users, script: prepare + `$S --link-journal=host --private-users=` + users + show,
				out: []string{`^mounted$`, `^in 0$`, `^said$`, `^host 0$`}, not: []string{`^link$`},
				stock: map[string]int{"pick": 257}[users],
			})
		}
		rows = append(rows, []nspawnRow{
			{name: "guest", script: prepare + `$S --link-journal=guest` + show, out: []string{`^in 0$`, `^link$`, `^said$`}, not: []string{`^mounted$`}},
			{name: "no", script: prepare + `$S --link-journal=no` + show, exit: 0, not: []string{`^mounted$`, `^link$`, `^said$`}},
			{name: "auto, nothing there", script: prepare + `$S --link-journal=auto` + show, not: []string{`^mounted$`, `^said$`}},
			{name: "auto", script: prepare + `mkdir $J; $S --link-journal=auto` + show, out: []string{`^mounted$`, `^said$`}},
			{name: "auto, a link of an earlier run", script: prepare + `ln -s $T/var/log/journal/` + id + ` $J; $S --link-journal=auto` + show, out: []string{`^in 0$`, `^link$`, `^said$`}},
			{name: "auto, a link for another tree", script: prepare + `ln -s /nowhere $J; $S --link-journal=auto --pipe true; [ -L $J ] || echo gone; rm -f $J $T/etc/machine-id`, out: []string{`^gone$`}},
			{name: "read-only", script: prepare + `for m in host try-host guest try-guest; do $S --read-only --link-journal=$m --pipe true; echo $m $?; done; ls -A $T/var/log; rm -rf $J; rm -f $T/etc/machine-id`,
				out: []string{`^host 1$`, `^try-host 0$`, `^guest 1$`, `^try-guest 0$`}, not: []string{`^journal$`}},
			{name: "volatile", script: prepare + `$S --link-journal=host --volatile=state` + show, out: []string{`^mounted$`, `^in 0$`, `^said$`, `^host 0$`}},
			{name: "volatile overlay, users", script: prepare + `$S --link-journal=host --volatile=overlay -U` + show, out: []string{`^mounted$`, `^in 0$`, `^said$`, `^host 0$`}, stock: 257},
			{name: "the host's own id", script: `cp /etc/machine-id $T/etc/machine-id; $S --link-journal=host true; echo must $?; $S --link-journal=try-host true; echo try $?; rm $T/etc/machine-id`, out: []string{`^must 1$`, `^try 0$`}},
			{name: "ephemeral", script: `$S -x --link-journal=host true; echo must $?; $S -x --link-journal=try-host true; echo try $?`, out: []string{`^must 1$`, `^try 0$`}},
		}...)
		nspawnRows(t, h, rows)
		h.Shell(t, `umount /var/log/journal`)
	})
}

// TestNspawnBindLive binds directories into running machines, over D-Bus and varlink.
func TestNspawnBindLive(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		h.Shell(t, `mkdir -p /var/tmp/src/sub; echo live >/var/tmp/src/f`)
		before := snapshot(t, h)
		for i, users := range []string{"--private-users=no", "-U"} {
			if users == "-U" && host.DefaultImpl() == host.Stock {
				continue // NotSupported
			}
			p := h.Start(t, "systemd-nspawn", "-q", "-M", "bb", users, "sh", "-c", "echo up; sleep 1000")
			p.Expect(t, "up")
			inside := func(script string) host.Result {
				leader := strings.TrimSpace(h.MustRun(t, "machinectl", "show", "bb", "-p", "Leader", "--value"))
				return h.Try("nsenter", "-t", leader, "-m", "-p", "-n", "-u", "-i", "/bin/sh", "-c", script)
			}
			h.MustRun(t, "machinectl", "bind", "--mkdir", "bb", "/var/tmp/src", "/mnt/by/dbus")
			match(t, inside("cat /mnt/by/dbus/f; touch /mnt/by/dbus/w && echo wrote").Stdout, `^live$`, `^wrote$`)
			h.MustRun(t, "machinectl", "bind", "--mkdir", "--read-only", "bb", "/var/tmp/src", "/mnt/ro")
			match(t, inside("cat /mnt/ro/f; touch /mnt/ro/w").Output(), `^live$`, `Read-only`)
			if r := h.Try("machinectl", "bind", "bb", "/var/tmp/src", "/mnt/none"); r.Exit == 0 {
				t.Errorf("bind onto nothing: %v", r)
			}
			if host.DefaultImpl() == host.Ours && h.Suite == host.Trixie {
				h.MustRun(t, "varlinkctl", "call", "/run/systemd/machine/io.systemd.Machine", "io.systemd.Machine.BindMount",
					fmt.Sprintf(`{"name":"bb","source":"/var/tmp/src","destination":"/mnt/varlink%d","mkdir":true,"readOnly":true}`, i))
				match(t, inside(fmt.Sprintf("cat /mnt/varlink%d/f; touch /mnt/varlink%d/w", i, i)).Output(), `^live$`, `Read-only`)
			}
			h.MustRun(t, "machinectl", "terminate", "bb")
			p.Wait(t)
		}
		waitGone(t, h)
		host.Eventually(t, 10*time.Second, func() error {
			if r := h.Try("grep", "-c", " /mnt/by/dbus ", "/proc/self/mountinfo"); r.Exit == 0 {
				return fmt.Errorf("mounts are left on the host: %v", r)
			}
			return nil
		})
		unchanged(t, h, before)
	})
}
