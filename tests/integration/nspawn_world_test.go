//go:build integration

package integration

import (
	"regexp"
	"testing"

	"machined/tests/host"
)

// world prints what a payload sees of its surroundings.
const world = `#!/bin/sh
echo "== environment"; tr '\0' '\n' </proc/self/environ | sort
echo "== mounts"; sed 's/^[0-9]* [0-9]* [0-9:]* //' /proc/self/mountinfo | sort
echo "== dev"; ls -lanR /dev; ls -lan /dev/pts
echo "== run"; ls -lan /run /run/host /run/host/inaccessible; cat /run/host/container-manager
echo "== top"; ls -lan / /proc/sys /sys /sys/class
echo "== rights"; grep -E '^(Cap|Seccomp:|NoNewPrivs|Umask|Groups|Uid|Gid|Sig[BI]|Cpus_allowed_list)' /proc/self/status; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups
echo "== limits"; cat /proc/self/limits /proc/self/oom_score_adj /proc/self/personality /proc/self/loginuid
echo "== cgroup"; cat /proc/self/cgroup; ls -lan /sys/fs/cgroup
echo "== streams"; for n in 0 1 2; do readlink /proc/$$/fd/$n; done; tty; cut -d' ' -f4-6 /proc/1/stat
echo "== names"; hostname; uname -m; ls -lan /etc/localtime /etc/resolv.conf; ip -o link
for f in kernel/hostname net/ipv4/ip_forward vm/swappiness kernel/core_pattern; do (exec 3>>/proc/sys/$f) 2>/dev/null && echo "$f w" || echo "$f -"; done
for f in sysrq-trigger kcore kallsyms keys timer_list kmsg bus fs irq acpi; do ls -land /proc/$f; done 2>&1
`

// incidental is what differs from one run to the next, or says the same in other
// words; docs/compatibility.md has the rest.
var incidental = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`\r`), ""},
	{regexp.MustCompile(`(container_uuid=).*`), "$1"},
	{regexp.MustCompile(`(shared|master):\d+`), "$1"},
	{regexp.MustCompile(`[A-Z][a-z][a-z] [ \d]\d +(\d\d:\d\d|\d{4})`), "DATE"},
	{regexp.MustCompile(`(?m)^total.*\n`), ""},
	{regexp.MustCompile(`(?m)^/(\.#proc-\S*|host/\S*).* /proc/(kmsg|sys/kernel/random/boot_id) .*\n`), ""},
	{regexp.MustCompile(`(?m)^\S+ /run/host/os-release .*\n`), ""},
	{regexp.MustCompile(`(?m)^/mtrr /proc/mtrr .*\n`), ""},
	{regexp.MustCompile(`(?m)^\S+ (/run/host/incoming) .*`), "$1"},
	{regexp.MustCompile(`(?m)^\S*/inaccessible/(\S+ /home ro),.*`), "$1"},
	// Signals 32 and 33 are glibc's own: its programs can't take back that their caller ignored them.
	{regexp.MustCompile(`(?m)^(SigIgn:\s+0{7})[01][08](0{7})$`), "${1}00$2"},
	{regexp.MustCompile(`pipe:\[\d+\]`), "pipe"},
	{regexp.MustCompile(`host0@\w+:`), "host0:"},
	{regexp.MustCompile(`(?m)^(.* /run/host/unix-export \S*) .*`), "$1"},
	{regexp.MustCompile(`(?m)^(.* /sys\S* .*sysfs sysfs) r[ow]`), "$1"},
	{regexp.MustCompile(`(?m)^(.* /run/host/credentials) .*`), "$1"},
	{regexp.MustCompile(`(?m)^(d[r-][w-][x-]\S+) +\d+ `), "$1 "},
	{regexp.MustCompile(` 65534 +65534 `), " 0 0 "}, // of the host's root, for what is read-only
	{regexp.MustCompile(` +`), " "},
	{regexp.MustCompile(`@if\d+`), ""},
	{regexp.MustCompile(` (link-netnsid|iflink) \S+`), ""},
	{regexp.MustCompile(`pts/\d+`), "pts/N"},
}

// TestNspawnWorld compares, line by line, what a payload sees of stock 257 and of ours.
func TestNspawnWorld(t *testing.T) {
	ours(t)
	h := host.Boot(t, host.Config{Suite: host.Trixie})
	h.BusyboxTree(t, "bb")
	h.WriteFile(t, "/var/lib/machines/bb/world", world, 0o755)
	before := snapshot(t, h)
	for _, options := range []string{
		"", "-U -n --tmpfs=/opt", "--pipe --tmpfs=/opt", "--user=user", "-a", "-a -U --private-network --user=user", "--private-users=identity", "--read-only", "--volatile=state --link-journal=no",
		"--capability=all --drop-capability=CAP_MKNOD", "--user=user --ambient-capability=CAP_KILL --no-new-privileges=yes --set-credential=a:b",
		"--hostname=foo.bar --uuid=a0a0a0a0b1b141c281d3e4f5f6a7b8c9 --rlimit=NOFILE=100:200 --oom-score-adjust=500 --cpu-affinity=0 --personality=x86",
		"--private-users=131072:65536 --private-users-ownership=map --bind=/srv:/mnt --tmpfs=/opt:size=1M --inaccessible=/home",
		"--chdir=/usr -E A=b -E PATH=/bin:/usr/bin --resolv-conf=off --timezone=off",
	} {
		t.Run(options, func(t *testing.T) {
			see := func(spawner string) string {
				r := h.Try("sh", "-c", spawner+" -q -M bb --register=no "+options+" /world </dev/null")
				if r.Exit != 0 {
					t.Fatal(r)
				}
				text := r.Stdout
				for _, i := range incidental {
					text = i.pattern.ReplaceAllString(text, i.with)
				}
				return text
			}
			want, got := see(h.Stock("systemd-nspawn")), see("systemd-nspawn")
			if a, b := linesOnlyIn(got, want), linesOnlyIn(want, got); a+b != "" {
				t.Errorf("only ours:\n%sonly stock's:\n%s", a, b)
			}
		})
	}
	unchanged(t, h, before)
}
