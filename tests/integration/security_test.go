//go:build integration

package integration

import (
	"cmp"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"machined/tests/host"
)

// wayOut is something that root of a machine may try in order to get at its host.
type wayOut struct {
	name, what string
	// Columns of docs/security.md where it is not refused: "" is refused.
	ours, oursUsers, stock, stockUsers string
	// try is for what needs the host's part; the others are in testdata/escape.c.
	try func(s siege, t *testing.T) (through string)
}

// rootIsRoot is the verdict on what nobody can refuse to the host's own root who
// has CAP_SYS_ADMIN, as a machine without a user namespace has.
const rootIsRoot = "through"

// waysOut is the list of docs/security.md, in its order.
var waysOut = []wayOut{
	{name: "proc-sys", what: "write to settings in `/proc/sys`"},
	{name: "core-pattern", what: "the same with `/proc/sys/kernel/core_pattern`, whose program the host's kernel runs"},
	{name: "proc-files", what: "write to `/proc/sysrq-trigger`, `mtrr`, `irq`, `acpi`, `scsi`; read `kcore` and `kallsyms`", stock: rootIsRoot},
	{name: "sys-files", what: "open any file of `/sys` for writing, but for the machine's own cgroups and links"},
	{name: "uevent-helper", what: "the same with `/sys/kernel/uevent_helper`, `/sys/power/state` and the like"},
	{name: "remount-proc", what: "make `/proc/sys` writable by a remount, and write to settings", stock: rootIsRoot},
	{name: "remount-sys", what: "make `/sys` writable by a remount", ours: rootIsRoot, stock: rootIsRoot},
	{name: "uncover-proc", what: "take the read-only mount off `/proc/sys`, and write to settings", stock: rootIsRoot},
	{name: "fresh-proc", what: "write to settings in a procfs of its own", stock: rootIsRoot},
	{name: "fresh-proc-files", what: "take the covers off `/proc/sysrq-trigger` and its like, or write to them in a procfs of its own", ours: rootIsRoot, stock: rootIsRoot},
	{name: "fresh-sysfs", what: "write to a sysfs of its own", ours: rootIsRoot, stock: rootIsRoot},
	{name: "kernel-filesystems", what: "mount debugfs, tracefs, securityfs, pstore, configfs, efivarfs", ours: rootIsRoot, stock: rootIsRoot},
	{name: "release-agent", what: "mount a cgroup v1 hierarchy and open its `release_agent`", ours: rootIsRoot, stock: rootIsRoot},
	{name: "host-cgroups", what: "reach the host's cgroups by a mount, `..`, or a new cgroup namespace"},
	{name: "disk-node", what: "make a node of the host's disk and open it"},
	{name: "device-nodes", what: "the same with `/dev/mem`, `port`, `kmsg`, `nvram`, `loop-control`, device mapper, `kvm`, `tty1`, `input`"},
	{name: "mount-disk", what: "mount the host's disk"},
	{name: "proc-root", what: "find the host's root in `/proc/*/root`, `cwd` and `fd`"},
	{name: "chroot", what: "leave by a second chroot and `..`"},
	{name: "pivot-root", what: "leave by pivot_root and by unmounting the root"},
	{name: "keyring", what: "search, read, add and request keys of the host's root"},
	{name: "programs", what: "write to the program of process 1 (`/proc/1/exe`), which with `--as-pid2` is the spawner's"},
	{name: "descriptors", what: "use descriptors that the spawner, or whoever called it, left open"},
	{name: "supervisor", what: "signal, trace, hold or read the supervisor"},
	{name: "namespaces", what: "get hold of a parent namespace by ioctl_ns(2), or of the supervisor's by `/proc`"},
	{name: "audit", what: "set the kernel's audit by a netlink socket"},
	{name: "userfaultfd", what: "userfaultfd, which makes holes in the kernel easier to use", stock: "through"},
	{name: "bpf", what: "load a BPF program"},
	{name: "kexec", what: "load another kernel"},
	{name: "modules", what: "load and remove modules"},
	{name: "open-by-handle", what: "open files by handle (\"shocker\")"},
	{name: "perf", what: "watch the host's CPUs by perf_event_open"},
	{name: "quota", what: "set quotas of the host's file system"},
	{name: "clock", what: "set the clock"},
	{name: "io-ports", what: "use I/O ports"},
	{name: "swap", what: "turn swap on or off, set process accounting"},
	{name: "kernel-log", what: "read the kernel's log"},
	{name: "old-calls", what: "old and rare calls: lookup_dcookie, nfsservctl, uselib, _sysctl"},
	{name: "inner-users", what: "do the mounts above as root of a user namespace of its own"},
	{name: "inner-users-keyring", what: "get at keys from there"},
	{name: "host-sockets", what: "connect to sockets of the host's services"},
	{name: "host-files", what: "write to the host's files behind `/run/host`, after a remount, too", stock: rootIsRoot, try: siege.hostFiles},
	{name: "program-again", what: "have the spawner executed once more in the machine (`#!/proc/self/exe`) with a loader of the image's, and write to it (CVE-2019-5736)", try: siege.programAgain},
	{name: "terminal", what: "put input into the host's terminal by TIOCSTI or TIOCLINUX, which `--console=pipe` hands over", stock: "through", try: siege.terminal},
	{name: "links", what: "links in the image in the place of `/dev`, `/proc`, `/sys`, `/run`, `/tmp`, `/etc`, `/var`, of files in these, and of mounts' destinations", try: siege.links},
	{name: "propagation", what: "have a mount appear on the host", try: siege.propagation},
	{name: "notify", what: "tell the service manager lies, from another process than the first", try: siege.notify},
	{name: "setuid", what: "make a setuid program of root's in a bind mount, for a user of the host", ours: rootIsRoot, stock: rootIsRoot, try: siege.setuid},
	{name: "user-lookup", what: "be asked for a user as the image's `getent`, before rights are given up", stock: "through", try: siege.userLookup},
	{name: "abstract-socket", what: "connect to an abstract socket of the host, with `--private-network`", try: siege.abstractSocket},
}

// securityTable is the list as docs/security.md shows it.
func securityTable() string {
	cell := func(s string) string {
		if s == "" {
			return "refused"
		}
		return "**" + s + "**"
	}
	var b strings.Builder
	b.WriteString("| Way out | What root of the machine tries | ours | ours, `-U` | stock | stock, `-U` |\n|---|---|---|---|---|---|\n")
	for _, w := range waysOut {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", w.name, w.what, cell(w.ours), cell(w.oursUsers), cell(w.stock), cell(w.stockUsers))
	}
	return b.String()
}

// TestSecurityDocument: the document says what TestSecurity shows.
func TestSecurityDocument(t *testing.T) {
	doc, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), securityTable()) {
		t.Errorf("docs/security.md does not have this table:\n%s", securityTable())
	}
}

// siege is one spawner, with or without user namespaces, whose machines attack.
type siege struct {
	h       *host.Host
	spawner string
	flags   string
	normal  map[string]string // results of a payload
}

// run runs a payload in the tree, and returns its output.
func (s siege) run(args string) host.Result {
	return s.h.Try("bash", "-c", "cd /; exec 9</ 8</var/lib </dev/null; "+s.command(args))
}

func (s siege) command(args string) string {
	return fmt.Sprintf("%s -q --register=no -D /var/lib/machines/bb %s %s", s.spawner, s.flags, args)
}

// TestSecurity tries each way out of machines of ours and of stock's, without and
// with user namespaces, and compares with the list.
func TestSecurity(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		tree := h.BusyboxTree(t, "bb")
		h.Compile(t, "testdata/escape.c", tree+"/bin/escape", "-static")
		h.Compile(t, "testdata/loader.c", "/var/tmp/loader", "-static-pie", "-nostartfiles")
		h.Shell(t, "mkdir -p /var/lib/only-on-host; install -m 755 "+tree+"/bin/escape /usr/local/bin/escape; mkdir -p "+tree+"/lib64 "+tree+"/lib; keyctl add user machined-test secret @u 2>/dev/null || true")
		before := snapshot(t, h)
		spawners := map[string]string{"ours": "systemd-nspawn", "stock": h.Stock("systemd-nspawn")}
		switch {
		case h.Impl == host.Stock:
			delete(spawners, "ours")
		case h.Suite != host.Bookworm:
			delete(spawners, "stock") // 257 is as 252; IMPL=stock shows that
		}
		for who, spawner := range spawners {
			for _, users := range []bool{false, true} {
				s := siege{h: h, spawner: spawner}
				name := who
				if users {
					s.flags, name = "-U", who+", -U"
				}
				t.Run(name, func(t *testing.T) { s.compare(t, who, users) })
			}
		}
		unchanged(t, h, before)
	})
}

var attempt = regexp.MustCompile(`(?m)^([a-z0-9-]+) (refused|through): (.*)$`)

// compare tries everything and compares with the columns of one spawner.
func (s siege) compare(t *testing.T, who string, users bool) {
	s.normal = s.attempts(t, "")
	for _, w := range waysOut {
		want := map[string][2]string{"ours": {w.ours, w.oursUsers}, "stock": {w.stock, w.stockUsers}}[who]
		expected := want[0]
		if users {
			expected = want[1]
		}
		result, through := s.normal[w.name], ""
		if w.try != nil {
			through = w.try(s, t)
		} else if kind, text, ok := strings.Cut(result, ": "); !ok {
			t.Errorf("%s: no result", w.name)
			continue
		} else if kind == "through" {
			through = text
		}
		if (through != "") != (expected != "") {
			t.Errorf("%s: got %q, want %q", w.name, through, expected)
		} else {
			t.Logf("%s: %s", w.name, cmp.Or(result, through, "refused"))
		}
	}
}

// attempts runs the program with all of its ways or one, and returns the results.
func (s siege) attempts(t *testing.T, only string) map[string]string {
	t.Helper()
	r := s.run(`--as-pid2 --pipe escape $(stat -c %Hd:%Ld /var/lib/machines) $$ /var/lib/only-on-host ` + only)
	if r.Exit != 0 {
		t.Fatal(r)
	}
	results := map[string]string{}
	for _, m := range attempt.FindAllStringSubmatch(r.Stdout, -1) {
		results[m[1]] = m[2] + ": " + m[3]
	}
	return results
}

// programAgain has the spawner execute itself in the machine, where what loads
// programs is the image's.
func (s siege) programAgain(t *testing.T) string {
	loader := map[string]string{"amd64": "/lib64/ld-linux-x86-64.so.2", "arm64": "/lib/ld-linux-aarch64.so.1"}[runtime.GOARCH]
	s.h.Shell(t, fmt.Sprintf(`cd /var/lib/machines/bb; cp /var/tmp/loader .%s; printf '#!/proc/self/exe\n' >bin/again; chmod 755 bin/again`, loader))
	defer s.h.Shell(t, fmt.Sprintf(`cd /var/lib/machines/bb; rm -f .%s bin/again`, loader))
	sum := "sha256sum $(command -v " + s.spawner + " systemd-nspawn)"
	before := s.h.Shell(t, sum)
	r := s.run("--pipe /bin/again")
	if s.h.Shell(t, sum) != before {
		return "the spawner has changed"
	}
	if strings.Contains(r.Output(), "through") {
		return r.Output()
	}
	return ""
}

// terminal hands a terminal of the host to the payload.
func (s siege) terminal(t *testing.T) string {
	p := s.h.StartTTY(t, "", "bash", "-c", s.command("--console=pipe escape type"))
	p.Expect(t, ": ")
	p.Wait(t)
	if strings.Contains(p.Output(), "through") {
		return p.Output()
	}
	return ""
}

// links has the image's directories and files lead to the host's.
func (s siege) links(t *testing.T) string {
	if s.spawner != "systemd-nspawn" {
		return "" // takes long with stock's: IMPL=stock
	}
	options := []string{
		"-u user --link-journal=guest -M l --resolv-conf=copy-host --timezone=copy --set-credential=a:b true",
		"--link-journal=host -M l --resolv-conf=bind-host --timezone=bind --bind=/usr/share/zoneinfo:/tmp/new/mount --tmpfs=/var/new/tmpfs true",
		"--resolv-conf=delete --timezone=delete --inaccessible=/etc/x --volatile=state --private-network true",
		"-b --resolv-conf=replace-host --timezone=symlink --overlay=+/var/o:/var/u:/mnt/new", "--read-only true", "--volatile=overlay -b",
	}
	s.h.Shell(t, `mkdir -p /var/tmp/victim/{etc,log/journal,x,sub}; echo host >/var/tmp/victim/etc/x; echo host >/var/tmp/victim/file; chmod 777 -R /var/tmp/victim; mkdir -p /var/u /var/log/journal`)
	list := `find /var/tmp/victim -printf '%p %y %m %U %G %s %T@ %C@ %l\n' | sort; sha256sum /var/tmp/victim/file`
	before := s.h.Shell(t, list)
	s.h.Shell(t, fmt.Sprintf(`
# attack LINK TARGET...: a tree in which the links lead out, started in all ways.
attack() {
	rm -rf /var/tmp/l; cp -a --reflink=auto /var/lib/machines/bb /var/tmp/l; printf '#!/bin/sh\nexit 0\n' >/var/tmp/l/sbin/init
	while [ $# -gt 0 ]; do
		mkdir -p "/var/tmp/l/$(dirname "$1")"; rm -rf "/var/tmp/l/$1"; ln -s "$2" "/var/tmp/l/$1"; shift 2
	done
	while read -r options; do
		timeout 20 %s -q --register=no -D /var/tmp/l %s $options </dev/null >/dev/null 2>&1 || true
	done <<'END'
%s
END
}
V=/var/tmp/victim
attack dev $V proc $V sys $V run $V tmp $V var $V mnt $V
attack dev ../../../../$V; attack run $V; attack etc ../../../../../..$V/etc
attack var/log ../../../..$V/log tmp $V; attack var/log/journal $V/log/journal mnt $V
attack run/host /proc/1/root$V etc/machine-id $V/file etc/resolv.conf ../../../../..$V/file etc/localtime $V/file home/user $V/file dev/console $V/file
rm -rf /var/tmp/l`, s.spawner, s.flags, strings.Join(options, "\n")))
	if after := s.h.Shell(t, list); after != before {
		return "the host's files have changed:\n" + linesOnlyIn(after, before)
	}
	return ""
}

// propagation mounts everywhere in the machine, and looks at the host meanwhile.
func (s siege) propagation(t *testing.T) string {
	before := s.h.Shell(t, "wc -l </proc/self/mountinfo")
	p := s.h.Start(t, "bash", "-c", s.command(`-M prop --bind=/usr/share/zoneinfo:/mnt/z sh -c 'mount -o remount,rw / ; mount --make-rshared / ; for d in /mnt/z /mnt /run/host/incoming /run/host/unix-export /run/host /var /proc/sys; do mount -t tmpfs escape $d; done; echo mounted; sleep 1000'`))
	p.Expect(t, "mounted")
	through := s.h.Try("grep", " escape ", "/proc/self/mountinfo").Stdout
	if err := p.Signal(s.h, 15); err != nil {
		t.Error(err)
	}
	p.Wait(t)
	host.Eventually(t, 5*time.Second, func() error {
		if after := s.h.Shell(t, "wc -l </proc/self/mountinfo"); after != before {
			return fmt.Errorf("mounts: %s, had %s", after, before)
		}
		return nil
	})
	return through
}

// notify has a second process say what only the first may.
func (s siege) notify(t *testing.T) string {
	s.h.MustRun(t, "bash", "-c", "systemd-run -q --no-block --unit=spoof -p Type=notify -p NotifyAccess=all -p Delegate=yes -p TimeoutStopSec=2 "+
		s.command("--keep-unit --notify-ready=yes --kill-signal=SIGKILL --console=pipe sh -c 'sh -c \"escape notify READY=1; escape notify STATUS=lies; escape notify MAINPID=1; echo\"; touch /told; sleep 1000'"))
	defer s.h.Shell(t, "systemctl stop spoof; systemctl reset-failed spoof 2>/dev/null || true; rm -f /var/lib/machines/bb/told")
	host.Eventually(t, 20*time.Second, func() error {
		if r := s.h.Try("test", "-e", "/var/lib/machines/bb/told"); r.Exit != 0 {
			return fmt.Errorf("the machine does not run: %v", s.h.Try("systemctl", "status", "spoof"))
		}
		return nil
	})
	time.Sleep(200 * time.Millisecond) // for what must not happen
	if state := s.h.Shell(t, "systemctl show -p ActiveState -p StatusText spoof"); strings.Contains(state, "ActiveState=active") || strings.Contains(state, "lies") {
		return state
	}
	return ""
}

// hostFiles changes what is shown of the host.
func (s siege) hostFiles(t *testing.T) string {
	list := `sha256sum /etc/os-release; find /run/systemd/nspawn /run/systemd/machines -name 'escape*'; rm -rf /run/systemd/nspawn/*/*/escape*`
	before := s.h.Shell(t, "cp -L /etc/os-release /var/tmp/os-release; "+list)
	r := s.run(`--register=yes -M hf --pipe sh -c 'for d in /run/host /run/host/os-release /run/host/incoming; do mount -o remount,bind,rw $d; done; echo >>/run/host/os-release; mkdir /run/host/incoming/escape; sleep 0; echo tried'`)
	if !strings.Contains(r.Stdout, "tried") {
		t.Fatal(r)
	}
	after := s.h.Shell(t, list+"; cp /var/tmp/os-release $(readlink -f /etc/os-release)")
	return linesOnlyIn(after, before)
}

// setuid leaves a program of root's in a directory of the host that anybody may use.
func (s siege) setuid(t *testing.T) string {
	s.h.Shell(t, "rm -rf /var/tmp/share; mkdir -m 777 /var/tmp/share; "+s.command(`--bind=/var/tmp/share:/mnt --pipe sh -c 'cp /bin/escape /mnt/; chmod 4755 /mnt/escape'`))
	r := s.h.Try("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/var/tmp/share/escape", "root")
	if !strings.Contains(r.Stdout, "user ") {
		t.Fatal(r)
	}
	if strings.HasPrefix(r.Stdout, "through") {
		return r.Stdout
	}
	return ""
}

// userLookup takes the place of the program that looks up users. It gets no
// further than the payload itself.
func (s siege) userLookup(t *testing.T) string {
	s.h.Shell(t, `cd /var/lib/machines/bb; cp -a usr/bin/getent /var/tmp/getent; rm -f usr/bin/getent; mkdir -pm 777 results; chmod 777 results
		cp bin/escape usr/bin/getent`)
	defer s.h.Shell(t, `cd /var/lib/machines/bb; rm -rf results usr/bin/getent; cp -a /var/tmp/getent usr/bin/getent`)
	r := s.run("--pipe -u user true")
	out := s.h.Shell(t, "cat /var/lib/machines/bb/results/lookup")
	if !strings.Contains(out, "proc-sys") {
		t.Fatalf("the image's getent was not asked: %v", r)
	}
	var through []string
	for _, m := range attempt.FindAllStringSubmatch(out, -1) {
		if m[2] == "through" && !strings.HasPrefix(s.normal[m[1]], "through") {
			through = append(through, m[1])
		}
	}
	return strings.Join(through, " ")
}

// abstractSocket connects to the host's over a network of the machine's own.
func (s siege) abstractSocket(t *testing.T) string {
	p := s.h.Start(t, "python3", "-c", `import socket,time
s=socket.socket(socket.AF_UNIX); s.bind("\0machined-test-outside"); s.listen(); print("up",flush=True); time.sleep(1000)`)
	defer p.Wait(t)
	defer func() { _ = p.Signal(s.h, 9) }()
	p.Expect(t, "up")
	// Where the network is the host's, so are its abstract sockets: the attempt is sound.
	if shared := s.attempts(t, "abstract-socket")["abstract-socket"]; !strings.HasPrefix(shared, "through") {
		t.Errorf("abstract-socket in the host's network: %q", shared)
	}
	s.flags += " --private-network"
	result := s.attempts(t, "abstract-socket")["abstract-socket"]
	if strings.HasPrefix(result, "through") {
		return result
	}
	return ""
}
