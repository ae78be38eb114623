//go:build vm

package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// machine is the virtual machine that all tests run in. What they leave in it is
// looked at by TestNothingStays.
var machine *VM

// TestMain boots the machine: of the suite $SUITE (trixie), with the product or, with
// IMPL=stock, without.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the virtual machine's disk is made by root")
		os.Exit(1)
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		fmt.Fprintln(os.Stderr, "install qemu-system-x86:", err)
		os.Exit(1)
	}
	suite := host.Suite(os.Getenv("SUITE"))
	if suite == "" {
		suite = host.Trixie
	}
	start := time.Now()
	var err error
	if machine, err = Start(context.Background(), suite, host.DefaultImpl()); err != nil {
		fmt.Fprintln(os.Stderr, "boot virtual machine:", err)
		os.Exit(1)
	}
	fmt.Printf("virtual machine of %s with %s's programs: up after %v\n", suite, machine.Impl, time.Since(start).Round(time.Second))
	code := 1
	if r := machine.Try("set -e\n" + tree + "chmod 755 $T; mv $T /var/lib/machines/bb"); r.Exit == 0 {
		code = m.Run()
	} else {
		fmt.Fprintln(os.Stderr, "make a tree of busybox:", r)
	}
	if err := machine.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "remove virtual machine:", err)
		code = 1
	}
	os.Exit(code)
}

// ours skips what stock cannot do.
func ours(t *testing.T) {
	t.Helper()
	if machine.Impl == host.Stock {
		t.Skip("stock has no such thing")
	}
}

// expect runs a script, and wants an exit status and patterns in its output.
func expect(t *testing.T, script string, exit int, patterns ...string) {
	t.Helper()
	r := machine.Try("exec 2>&1\n" + script)
	if r.Exit != exit {
		t.Fatalf("want exit %d; got %v", exit, r)
	}
	for _, p := range patterns {
		if !regexp.MustCompile("(?m)" + p).MatchString(r.Stdout) {
			t.Errorf("no %q in %v", p, r)
		}
	}
}

func TestHost(t *testing.T) {
	expect(t, `systemctl is-system-running; systemctl --failed --no-legend; cat /proc/1/comm; cat /sys/fs/cgroup/cgroup.controllers; stat -fc %T /sys/fs/cgroup; udevadm settle && udevadm info -q property /dev/vda`, 0,
		`^running$`, `^systemd$`, `cpuset cpu io memory .*pids`, `^cgroup2fs$`, `^ID_FS_TYPE=ext4$`)
}

// tree makes a tree of busybox in the directory $T, with a file that is larger than
// what is read to mount it.
const tree = `
T=$(mktemp -d)
mkdir -p $T/{bin,sbin,usr/lib,etc,proc,sys,dev,run,tmp,root,var/log,home}
cp /bin/busybox $T/bin; for a in sh cat ls touch head awk dd md5sum grep mount sleep seq stat ip; do ln -s busybox $T/bin/$a; done
printf 'ID=busybox\n' >$T/etc/os-release
printf 'root:x:0:0::/root:/bin/sh\n' >$T/etc/passwd; printf 'root:x:0:\n' >$T/etc/group
: >$T/etc/localtime; : >$T/etc/resolv.conf
printf '#!/bin/sh\ntrap "exit 0" 37\nwhile :; do sleep 1000000 & wait $!; done\n' >$T/sbin/init ; chmod 755 $T/sbin/init # 37 is SIGRTMIN+3
seq 200000 >$T/root/data
`

// TestLimits has limits hold that need controllers.
func TestLimits(t *testing.T) {
	const run = `systemd-nspawn -q --console=pipe -M bb `
	t.Run("memory by property", func(t *testing.T) {
		// awk doubles a string until it is killed.
		expect(t, run+`--property=MemoryMax=32M --property=MemorySwapMax=0 awk 'BEGIN{s="0123456789abcdef"; for(i=0;i<23;i++) s=s s; print length(s)}' </dev/null; e=$?; [ $e -ne 0 ] && echo refused; journalctl -b -k --no-pager | grep -c 'Memory cgroup out of memory.*busybox\|Memory cgroup out of memory.*awk'`, 0, `^refused$`, `^[1-9]`)
		expect(t, run+`--property=MemoryMax=512M awk 'BEGIN{s="0123456789abcdef"; for(i=0;i<20;i++) s=s s; print length(s)}' </dev/null`, 0, `^16777216$`)
	})
	t.Run("tasks by property", func(t *testing.T) {
		expect(t, run+`--property=TasksMax=8 sh -c 'for i in $(seq 20); do sleep 5 & done; echo all' </dev/null`, 2, `can't fork`)
		expect(t, run+`--property=TasksMax=60 sh -c 'for i in $(seq 20); do sleep 5 & done; echo all' </dev/null`, 0, `^all$`)
	})
	t.Run("set-property of a running machine", func(t *testing.T) {
		expect(t, run+`sh -c 'until [ -e /go ]; do sleep 1; done; for i in $(seq 20); do sleep 5 & done; echo all' </dev/null >/tmp/out 2>&1 & pid=$!
for i in $(seq 300); do machinectl show bb -p State 2>/dev/null | grep -q running && break; sleep 0.2; done
unit=$(machinectl show bb -p Unit --value); echo "unit $unit"
systemctl set-property --runtime $unit TasksMax=8 MemoryMax=100M
cg=/sys/fs/cgroup$(systemctl show -p ControlGroup --value $unit); grep . $cg/pids.max $cg/memory.max
touch /var/lib/machines/bb/go; wait $pid; cat /tmp/out; rm /var/lib/machines/bb/go`, 0, `^unit machine-bb.scope$`, `pids.max:8$`, `memory.max:104857600$`, `can't fork`)
	})
	t.Run("the unit", func(t *testing.T) {
		expect(t, `set -e
mkdir -p /run/systemd/system/systemd-nspawn@debian.service.d
printf '[Service]\nMemoryMax=300M\nTasksMax=500\n' >/run/systemd/system/systemd-nspawn@debian.service.d/limits.conf
systemctl daemon-reload; machinectl start debian
cg=/sys/fs/cgroup$(systemctl show -p ControlGroup --value systemd-nspawn@debian); grep . $cg/memory.max $cg/pids.max
find $cg -name cgroup.procs | sed s,$cg,, | sort | head -n 20
for i in $(seq 100); do systemctl -M debian is-system-running 2>/dev/null | grep -E 'running|degraded' && break; sleep 1; done; systemctl -M debian --failed --no-legend
systemd-run -M debian --wait -P -q -- grep . /proc/self/cgroup
free=$(cat $cg/memory.current); echo "uses $free"; machinectl status debian --no-pager | head -n 30`, 0,
			`memory.max:314572800$`, `pids.max:500$`, `^running$`, `^/payload/`, `^/supervisor/`, `uses [1-9]`, `Unit: systemd-nspawn@debian.service`)
	})
	t.Run("controllers inside", func(t *testing.T) {
		expect(t, `systemd-run -M debian --wait -P -q -p MemoryMax=20M -p TasksMax=7 -- sh -c 'cat /sys/fs/cgroup/cgroup.controllers; cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/pids.max'`, 0,
			`memory`, `pids`, `^20971520$`, `^7$`)
	})
	t.Run("the machine ends", func(t *testing.T) {
		expect(t, `machinectl poweroff debian; for i in $(seq 300); do machinectl show debian >/dev/null 2>&1 || break; sleep 0.2; done; rm -r /run/systemd/system/systemd-nspawn@debian.service.d; systemctl daemon-reload; systemctl is-failed systemd-nspawn@debian; ls /sys/fs/cgroup/machine.slice`, 0, `inactive`)
	})
}

// TestScopes has machined put processes that it is told of into scopes with limits.
func TestScopes(t *testing.T) {
	expect(t, `set -e
setsid sleep 1000 </dev/null >/dev/null 2>&1 & leader=$!
busctl call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager CreateMachine 'sayssusa(sv)' reg 0 test container $leader '' 3 MemoryMax t 67108864 TasksMax t 33 CPUWeight t 50
cg=/sys/fs/cgroup/machine.slice/machine-reg.scope; grep . $cg/memory.max $cg/pids.max $cg/cpu.weight; grep -x $leader $cg/cgroup.procs
machinectl terminate reg; for i in $(seq 100); do [ -e $cg ] || break; sleep 0.2; done; [ ! -e $cg ]; ! kill -0 $leader`, 0,
		`memory.max:67108864$`, `pids.max:33$`, `cpu.weight:50$`)
}

func TestIPVLAN(t *testing.T) {
	expect(t, `set -e
ip link add dummy0 type dummy; ip link set dummy0 up
systemd-nspawn -q --console=pipe -M bb --network-ipvlan=dummy0 --network-ipvlan=dummy0:inside sh -c 'ip link' </dev/null
systemd-nspawn -q --console=pipe -M bb --network-macvlan=dummy0 -U sh -c 'ip link' </dev/null
ip -o link; ip link del dummy0`, 0, `iv-dummy0[@:]`, `inside[@:]`, `mv-dummy0[@:]`)
	expect(t, `for i in $(seq 50); do ip -o link | grep -E 'iv-|mv-|inside' || exit 0; sleep 0.2; done; exit 1`, 0)
	expect(t, `systemd-nspawn -q --console=pipe -M bb --network-ipvlan=absent0 sh </dev/null`, 1, `absent0`)
}

// TestImages runs an image with a partition table, which udev and the kernel see too.
func TestImages(t *testing.T) {
	machine.Shell(t, `mkdir -p /var/tmp/p; cd /var/tmp/p`+tree+`
mkdir $T/h; echo home >$T/h/which; mkfs.ext4 -q -b 4096 -d $T/h home.img 4M; rm -r $T/h
mkfs.ext4 -q -b 4096 -d $T root.img 16M; rm -r $T
truncate -s 24M gpt.raw; sfdisk -q gpt.raw <<TABLE
label: gpt
start=1MiB, size=16MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709
start=17MiB, size=4MiB, type=933AC7E1-2EB4-4F13-B844-0E14E2AEF915
TABLE
dd if=root.img of=gpt.raw bs=1M seek=1 conv=notrunc status=none; dd if=home.img of=gpt.raw bs=1M seek=17 conv=notrunc status=none`)
	for range 3 { // one after another: udev must not get in the way
		expect(t, `cd /var/tmp/p; systemd-nspawn -q --console=pipe -M img -i gpt.raw sh -c 'cat /home/which; touch /written && echo written' </dev/null`, 0, `^home$`, `^written$`)
	}
	expect(t, `cd /var/tmp/p; dev=$(losetup --show -fP gpt.raw); udevadm settle; systemd-nspawn -q --console=pipe -M img -i $dev --read-only sh -c 'cat /home/which; ls /written' </dev/null; e=$?; losetup -d $dev; exit $e`, 0, `^home$`, `^/written$`)
}

// TestNothingStays runs last: by then all machines have ended.
func TestNothingStays(t *testing.T) {
	host.Eventually(t, 30*time.Second, func() error {
		r := machine.Try(`dmsetup ls | grep -v 'No devices'; losetup -a; machinectl --no-legend list; systemctl --failed --no-legend; ip -o link | grep -v ' lo:'; grep -E 'nspawn|/var/lib/machines' /proc/self/mountinfo | grep -v unix-export`) // that of a killed run goes with the next one
		if out := strings.TrimSpace(r.Output()); out != "" {
			return fmt.Errorf("left behind:\n%s", out)
		}
		return nil
	})
}
