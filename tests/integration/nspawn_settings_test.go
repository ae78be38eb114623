//go:build integration

package integration

import (
	"strings"
	"testing"

	"machined/tests/host"
)

// bigSettings has a value for almost every key. FAMILY stands for the links of
// the host, which bigLinks makes.
const bigSettings = `
# a comment
[Exec]
Boot=no
Ephemeral=no
ProcessTwo=no
Parameters=sh /entry "foo bar" 'bar baz' plain
Environment=FOO=bar
Environment=BAZ="hello world" QUX=1
User=root
WorkingDirectory=/tmp
Capability=CAP_BLOCK_SUSPEND CAP_BPF CAP_CHOWN
DropCapability=CAP_AUDIT_CONTROL CAP_AUDIT_WRITE
AmbientCapability=CAP_BPF CAP_CHOWN
NoNewPrivileges=no
MachineID=f28f129b51874b1280a89421ec4b4ad4
NotifyReady=no
SystemCallFilter=@basic-io @chown
SystemCallFilter=~ @clock
LimitNOFILE=1000:2000
LimitCORE=infinity
LimitRTPRIO=0:0
OOMScoreAdjust=32
CPUAffinity=0,0-5,1-5
Hostname=nspawn-settings
ResolvConf=copy-host
Timezone=delete
LinkJournal=no
SuppressSync=no
KillSignal=SIGTERM
Personality=x86-64
NoSuchKey=ignored

[Files]
ReadOnly=no
Volatile=no
TemporaryFileSystem=/mnt/tmpfs
TemporaryFileSystem=/mnt/small:size=1M,mode=0700
Bind=/var/tmp/big/bind
BindReadOnly=/var/tmp/big/bind:/mnt/ro:norbind,noidmap
Inaccessible=/var/lib/inacc
Overlay=+/var/over::/var/over
OverlayReadOnly=/var/tmp/big/l1:/var/tmp/big/l2:/mnt/olro

[Network]
Private=yes
VirtualEthernet=yes
VirtualEthernetExtra=my-fancy-veth1
VirtualEthernetExtra=fancy-veth2:my-fancy-veth2
Interface=big0 big1:given1
Interface=big2-altname:given2
MACVLAN=big3 big4:my-macvlan4 big5-long-name0
Zone=bigzone0
Port=8180
Port=8181:8182
Port=udp:8160
Port=tcp:8161:8162
`

// entry shows what the payload of bigSettings got.
const entry = `#!/bin/sh
exec 2>&1; echo "argc $#: <$1> <$2> <$3>"
echo "cwd $PWD"; env | grep -e ^FOO -e ^BAZ -e ^QUX | sort
grep -e CapEff -e CapBnd -e CapAmb -e NoNew -e Cpus_allowed_list /proc/self/status
grep -e "open files" -e "core file" -e "realtime prio" /proc/self/limits
echo "oom $(cat /proc/self/oom_score_adj)"; hostname; echo $container_uuid; uname -m
cat /etc/resolv.conf; ls /etc/localtime
ls /var/lib/inacc/x; ls /var/over; touch /var/over/new && echo over; ls /mnt/olro; touch /mnt/olro/x; touch /mnt/ro/x; touch /var/tmp/big/bind/rw && echo bind
for m in /mnt/tmpfs /mnt/small /var/tmp/big/bind /mnt/ro /var/over /mnt/olro; do grep " $m " /proc/self/mountinfo | sed 's/.* \(\/[^ ]*\) \([^ ]*\) .* - \([^ ]*\) .*/mount \1 \2 \3/' ; done
ip -o link | sed 's/^[0-9]*: //; s/ mtu .*link/ link/; s/@if[0-9]*//; s/ brd .*//; s/@[^:]*//' | sort
cat /proc/self/uid_map; stat -c "owner %u" /entry /mnt/tmpfs /mnt/small /var/over
`

const bigLinks = `
ip link add big0 type veth peer name big1
ip link add big2 type veth peer name big3
ip link property add dev big2 altname big2-altname
ip link add big4 type veth peer name big5-long-name0
for l in big0 big1 big2 big3 big4 big5-long-name0; do ip link set $l up; done
mkdir -p /var/tmp/big/bind /var/tmp/big/l1 /var/tmp/big/l2; touch /var/tmp/big/l1/one /var/tmp/big/l2/two
printf 'nameserver 192.0.2.1\n' >/var/tmp/big/resolv; mount --bind /var/tmp/big/resolv "$(readlink -f /etc/resolv.conf)"
`

// TestNspawnBigSettings gives the spawner a file with nearly every key, alone and
// with each kind of user namespace, and compares with stock beside it.
func TestNspawnBigSettings(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "big")
		before := snapshot(t, h)
		h.Shell(t, "[ -e /etc/resolv.conf ] || echo >/etc/resolv.conf\n"+bigLinks)
		h.WriteFile(t, "/var/lib/machines/big/entry", entry, 0o755)
		h.Shell(t, `cd /var/lib/machines/big; mkdir -p var/lib/inacc var/over mnt/olro; touch var/lib/inacc/x var/over/low; echo x >etc/localtime; : >etc/resolv.conf`)
		run := func(t *testing.T, spawner, users string) string {
			file := bigSettings
			if users != "" {
				file = strings.Replace(file, "[Exec]", "[Exec]\nPrivateUsers="+users, 1)
				if users == "131072:65536" {
					file = strings.Replace(file, "[Files]", "[Files]\nPrivateUsersOwnership=map", 1)
				}
			}
			if h.Suite == host.Bookworm { // 252 has no links with two names
				file = strings.ReplaceAll(file, "big1:given1\nInterface=big2-altname:given2", "big1")
				file = strings.Replace(file, "OOMScoreAdjust=32\n", "", 1) // not in a user namespace there
				file = strings.ReplaceAll(file, " big4:my-macvlan4 big5-long-name0", "")
			}
			h.WriteFile(t, "/etc/systemd/nspawn/big.nspawn", file, 0o644)
			r := h.Try("bash", "-c", "cd /; touch /var/lib/machines/big/etc/localtime; : >/var/lib/machines/big/etc/resolv.conf; "+spawner+" -q -M big --pipe --register=no </dev/null 2>/tmp/log")
			if r.Exit != 0 {
				t.Fatalf("exit status %d: %v%s", r.Exit, r, h.Try("cat", "/tmp/log").Stdout)
			}
			return r.Stdout
		}
		want := []string{
			`^argc 3: <foo bar> <bar baz> <plain>$`, `^cwd /tmp$`, `^BAZ=hello world$`, `^FOO=bar$`, `^QUX=1$`,
			`CapAmb:\s0000008000000001`, `CapBnd:\s000000909[cd]ecbfff`, `open files\s+1000\s+2000`, `core file size\s+unlimited`,
			`^nspawn-settings$`, `^f28f129b-5187-4b12-80a8-9421ec4b4ad4$`, `/etc/localtime: No such file`,
			`inacc/x: (Permission denied|No such file)`, `^low$`, `^over$`, `^one$`, `^two$`, `/mnt/olro/x: Read-only`, `/mnt/ro/x: Read-only`,
			`^big0: `, `^host0: `, `^lo: .*LOOPBACK,UP`, `^mv-big3: `, `^my-fancy-veth1: `, `^my-fancy-veth2: `,
		}
		for _, c := range []struct{ users, uid string }{
			{"", `^\s+0\s+0\s+4294967295$`}, {"131072:65536", `^\s+0\s+131072\s+65536$`},
			{"yes", `^\s+0\s+0\s+65536$`}, {"identity", `^\s+0\s+0\s+65536$`}, {"pick", `^\s+0\s+\d+\s+65536$`},
		} {
			t.Run("users "+strings.Split(c.users, "\n")[0], func(t *testing.T) {
				// What stock makes of overlays and OOM scores of mapped machines is not of use.
				mapped := c.users == "131072:65536" || c.users == "pick"
				h.MustRun(t, "udevadm", "settle") // stock wants links that udev knows
				if mapped && host.DefaultImpl() == host.Stock {
					t.Skip("stock has no such thing")
				}
				got := run(t, "systemd-nspawn", c.users)
				match(t, got, append([]string{c.uid}, want...)...)
				if h.Suite == host.Trixie {
					match(t, got, `^given1: `, `^given2: `, `^my-macvlan4: `, `^mv-big5-lon....: `, `^oom 32$`)
				}
				links := h.MustRun(t, "ip", "-o", "link")
				match(t, links, `: big0@`, `: big1@`, `: big2@`, `: big3@`)
				if strings.Contains(links, "vz-") {
					t.Errorf("the zone is left: %s", links)
				}
				if host.DefaultImpl() == host.Ours && !mapped {
					h.MustRun(t, "udevadm", "settle")
					if stock := run(t, h.Stock("systemd-nspawn"), c.users); stock != got {
						t.Errorf("output differs from stock's: only ours:\n%sonly stock's:\n%s", linesOnlyIn(got, stock), linesOnlyIn(stock, got))
					}
				}
			})
		}
		h.Shell(t, `rm -f /etc/systemd/nspawn/big.nspawn; umount "$(readlink -f /etc/resolv.conf)"; ip link del big0; ip link del big2; ip link del big4`)
		unchanged(t, h, before)
	})
}

// TestNspawnPrecedence has who wins, the command line or the file, and which files are trusted.
func TestNspawnPrecedence(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		const show = `sh -c 'echo host $(hostname) env $A uuid $container_uuid; grep -q CapBnd:.000001 /proc/self/status && echo all caps; ls /mnt/bound 2>/dev/null'`
		const file = `[Exec]\nHostname=fromfile\nEnvironment=A=file\nMachineID=11111111111141118111111111111111\nCapability=all\n[Files]\nBind=/usr/lib/os-release:/mnt/bound\n`
		trusted := `mkdir -p /etc/systemd/nspawn; printf '` + file + `' >/etc/systemd/nspawn/bb.nspawn; `
		untrusted := `rm -f /etc/systemd/nspawn/bb.nspawn; printf '` + file + `' >/var/lib/machines/bb.nspawn; `
		const done = `; rm -f $T/mnt/bound /etc/systemd/nspawn/bb.nspawn /var/lib/machines/bb.nspawn`
		const cli = ` --hostname=fromcli --uuid=22222222222242228222222222222222 -E A=cli `
		nspawnRows(t, h, []nspawnRow{
			{name: "file alone", script: trusted + `$S --pipe ` + show + done, out: []string{`^host fromfile env file uuid 11111111-`, `^all caps$`, `^/mnt/bound$`}},
			{name: "command line wins", script: trusted + `$S --pipe` + cli + show + done, out: []string{`^host fromcli env cli uuid 22222222-`, `^all caps$`}},
			{name: "override", script: trusted + `$S --pipe --settings=override` + cli + show + done, out: []string{`^host fromfile env file uuid 11111111-`}},
			{name: "no", script: trusted + `$S --pipe --settings=no ` + show + done, out: []string{`^host bb env uuid `}, not: []string{`all caps`, `bound`}},
			{name: "beside the image", script: untrusted + `$S --pipe ` + show + done, out: []string{`^host fromfile env file uuid `, `MachineID`, `Capability`, `(?i)bind`}, not: []string{`uuid 11111111-`, `all caps`, `^/mnt/bound$`}},
			{name: "beside the image, trusted", script: untrusted + `$S --pipe --settings=trusted ` + show + done, out: []string{`^host fromfile env file uuid 11111111-`, `^all caps$`, `^/mnt/bound$`}},
			{name: "beside the image, trusted, command line wins", script: untrusted + `$S --pipe --settings=trusted` + cli + show + done, out: []string{`^host fromcli env cli uuid 22222222-`}},
			{name: "beside the image, override", script: untrusted + `$S --pipe --settings=override` + cli + show + done, out: []string{`^host fromfile env file uuid `}},
			{name: "first found", script: trusted + `mkdir -p /run/systemd/nspawn; printf '[Exec]\nHostname=fromrun\n' >/run/systemd/nspawn/bb.nspawn; $S --pipe ` + show + `; rm /etc/systemd/nspawn/bb.nspawn; $S --pipe ` + show + `; rm /run/systemd/nspawn/bb.nspawn` + done,
				out: []string{`^host fromfile `, `^host fromrun env uuid `}},
			{name: "parameters", script: `printf '[Exec]\nBoot=no\nParameters=echo "from file" $x\n' >/etc/systemd/nspawn/bb.nspawn; $S --pipe; $S --pipe echo from cli` + done, out: []string{`^from file \$x$`, `^from cli$`}},
			{name: "mounts are one group", script: trusted + `$S --pipe --tmpfs=/mnt/t ` + show + done, not: []string{`bound`}},
			{name: "networks are one group", script: `printf '[Network]\nVirtualEthernet=yes\n' >/etc/systemd/nspawn/bb.nspawn; $S --pipe ip -o link; echo; echo cli; $S --pipe --private-network ip -o link | grep -c host0` + done, out: []string{`host0`, `^cli\n0$`}},
			{name: "port without network", script: `printf '[Network]\nPort=80\n' >/etc/systemd/nspawn/bb.nspawn; $S --pipe true; e=$?` + done + `; exit $e`, exit: 1},
			{name: "a mode that is none", script: `$S --settings=perhaps true`, exit: 1, out: []string{`perhaps`}},
			{name: "broken lines", script: `printf '[Exec\nHostname=x\n' >/etc/systemd/nspawn/bb.nspawn; $S --pipe true; e=$?` + done + `; exit $e`, exit: 1, out: []string{`bb.nspawn`}},
		})
	})
}
