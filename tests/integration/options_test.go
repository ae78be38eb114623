//go:build integration

package integration

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"machined/tests/host"
)

// optionRow is one run of the spawner, on the tree called box.
type optionRow struct {
	// args are words of a shell: options, and behind " -- " a command (default
	// true). With "! " before them they are all there is.
	args string
	// file is the text of box.nspawn, in /etc/systemd/nspawn or, with beside, where
	// it is not trusted.
	file   string
	beside bool
	exit   int
	says   string // is in standard error; "" with exit 0: nothing is said
	out    string // is in standard output
	// stock has the suites (252, 257) whose stock ends otherwise, other those whose
	// stock says it otherwise. docs/compatibility.md has the reasons.
	stock, other string
}

// TestOptions has every option and every key of .nspawn files with values that are
// good, empty and garbage, and pins exit status and message. All of a table runs as
// one script in the host.
func TestOptions(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		before := snapshot(t, h)
		h.BusyboxTree(t, "box")
		h.Shell(t, "mkdir -p /var/lib/machines/box/mnt /var/lib/machines/box/opt /etc/systemd/nspawn")
		t.Run("options", func(t *testing.T) { runRows(t, h, "options", optionRows) })
		t.Run("accepted", func(t *testing.T) { runRows(t, h, "accepted", acceptedRows) })
		t.Run("keys", func(t *testing.T) { runKeys(t, h) })
		t.Run("precedence", func(t *testing.T) { runRows(t, h, "precedence", precedenceRows) })
		unchanged(t, h, before)
	})
}

// suiteVersion is the version of a suite's systemd.
func suiteVersion(h *host.Host) string {
	if h.Suite == host.Bookworm {
		return "252"
	}
	return "257"
}

// runRows runs a table and compares.
func runRows(t *testing.T, h *host.Host, name string, rows []optionRow) {
	t.Helper()
	dir := "/run/rows-" + name
	var script strings.Builder
	fmt.Fprintf(&script, "mkdir %s; cd /\nunset LISTEN_FDS CREDENTIALS_DIRECTORY FOO\nexport LC_ALL=C\n", dir)
	const before = "-q --register=no -D /var/lib/machines/box --pipe "
	for i, r := range rows {
		args := strings.TrimPrefix(r.args, "! ")
		environment := ""
		for args != "" && args[0] != '-' && strings.Contains(strings.Fields(args)[0], "=") {
			w, rest, _ := strings.Cut(args, " ")
			environment, args = environment+w+" ", rest
		}
		if !strings.HasPrefix(r.args, "! ") {
			if command, found := strings.CutPrefix(args, "-- "); found {
				args = before + command
			} else if options, command, found := strings.Cut(args, " -- "); found {
				args = before + options + " " + command
			} else {
				args = before + args + " true"
			}
		}
		place := "/etc/systemd/nspawn/box.nspawn"
		if r.beside {
			place = "/var/lib/machines/box.nspawn"
		}
		if r.file != "" {
			fmt.Fprintf(&script, "printf '%%b' %s >%s\n", shellBytes(r.file), place)
		}
		fmt.Fprintf(&script, "%stimeout 20 systemd-nspawn %s </dev/null >%s/%d.out 2>%s/%d.err; echo $? >%s/%d.rc\n", environment, args, dir, i, dir, i, dir, i)
		if r.file != "" {
			fmt.Fprintf(&script, "rm -f %s\n", place)
		}
	}
	file := "/run/rows-" + name + ".sh"
	h.WriteFile(t, file, script.String(), 0o755)
	h.MustRun(t, "bash", file)
	version := suiteVersion(h)
	read := func(i int, what string) string {
		data, err := os.ReadFile(h.Path(fmt.Sprintf("%s/%d.%s", dir, i, what)))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	for i, r := range rows {
		exit, stdout, stderr := read(i, "rc"), read(i, "out"), plainText(read(i, "err"))
		if h.Impl == host.Stock && strings.Contains(r.stock, version) {
			continue
		}
		label := fmt.Sprintf("%s %q", r.args, r.file)
		if exit != strconv.Itoa(r.exit) {
			t.Errorf("%s: exit %s, want %d: %s", label, exit, r.exit, stderr)
		}
		if !strings.Contains(stdout, r.out) {
			t.Errorf("%s: printed %q, want %q", label, stdout, r.out)
		}
		if h.Impl == host.Stock && strings.Contains(r.other, version) {
			continue
		}
		switch {
		case r.says == "" && r.exit == 0 && stderr != "":
			t.Errorf("%s: said %q, want nothing", label, stderr)
		case !strings.Contains(stderr+" ", r.says):
			t.Errorf("%s: said %q, want %q", label, stderr, r.says)
		case h.Impl == host.Ours && r.exit != 0 && r.file == "" && strings.Contains(stderr, "\n"):
			t.Errorf("%s: more than one line: %q", label, stderr)
		}
	}
}

// singleKey is a file of one line in one section.
var singleKey = regexp.MustCompile(`^\[(\w+)\]\n(\w+=(.*))\n$`)

// runKeys runs what is passed over, and what is empty, as one file a section: each
// line has its own number in its warning. The rest of the table runs row by row.
func runKeys(t *testing.T, h *host.Host) {
	t.Helper()
	var alone []optionRow
	lines := map[string][]string{}
	batched := map[string][]optionRow{}
	for _, r := range keyRows {
		m := singleKey.FindStringSubmatch(r.file)
		if m == nil || r.beside || r.exit != 0 || r.stock != "" || r.says == "" && m[3] != "" || r.says != "" && !strings.Contains(r.says, ":2: ") {
			alone = append(alone, r)
			continue
		}
		lines[m[1]] = append(lines[m[1]], m[2])
		batched[m[1]] = append(batched[m[1]], r)
	}
	runRows(t, h, "keys", alone)
	for section, rows := range batched {
		const path = "/etc/systemd/nspawn/box.nspawn"
		h.WriteFile(t, path, "["+section+"]\n"+strings.Join(lines[section], "\n")+"\n", 0o644)
		r := h.Try("systemd-nspawn", "-q", "--register=no", "-D", "/var/lib/machines/box", "--pipe", "true")
		if r.Exit != 0 {
			t.Errorf("[%s]: exit %d: %s", section, r.Exit, r.Stderr)
		}
		said := strings.Split(plainText(r.Stderr), "\n")
		for i, row := range rows {
			number := fmt.Sprintf("%s:%d: ", path, i+2)
			want := strings.Replace(row.says, path+":2: ", number, 1)
			if h.Impl == host.Stock && strings.Contains(row.other, suiteVersion(h)) {
				continue
			}
			n := slices.IndexFunc(said, func(l string) bool { return strings.HasPrefix(l, number) })
			switch {
			case want == "" && n >= 0:
				t.Errorf("[%s] %s: said %q, want nothing", section, lines[section][i], said[n])
			case want != "" && (n < 0 || !strings.Contains(said[n], want)):
				t.Errorf("[%s] %s: want %q in %q", section, lines[section][i], want, said)
			}
		}
		h.MustRun(t, "rm", path)
	}
}

// acceptedRows are good values, many to a machine.
var acceptedRows = []optionRow{
	{args: "--hostname= --setenv=NONESUCH --kill-signal=TERM --slice=foo --capability=all --drop-capability=all --cpu-affinity=0 --user=0"},
	{args: "--kill-signal=SIGTERM --machine=foo --private-users=65537 --network-veth-extra=a --rlimit=NOFILE=infinity --rlimit=CORE=infinity:infinity --rlimit=NICE=+5 --rlimit=CPU=1min --rlimit=AS=1G:2G"},
	{args: "--kill-signal=RTMIN+3 --private-users=0 --capability=CAP_SYS_TIME --ambient-capability=CAP_SYS_TIME --cpu-affinity=\"0 0\" --resolv-conf=yes --timezone=copy --link-journal=yes"},
	{args: "--kill-signal=RTMAX-1 --private-users=1 --capability=cap_net_admin --capability=12,,13 --resolv-conf=no --timezone=yes --link-journal=no"},
	{args: "--private-users=no --resolv-conf=copy-host --link-journal=try-guest --bind=/etc:/mnt:rbind,norbind --bind=+/etc:/mnt2 --bind=:/mnt3 --inaccessible=/etc/passwd --tmpfs=/tmp2: --tmpfs=/tmp3:size=10M"},
	{args: "--private-users=65536:65536 --link-journal=auto --bind=/etc:/mnt:noidmap --overlay-ro=/etc:/var:/mnt2 --overlay=+/etc::/mnt3 --console=pipe"},
	{args: "--volatile=no --read-only --register=no --notify-ready=no --suppress-sync=yes --no-new-privileges=yes --set-credential=a:b --set-credential=c: --system-call-filter=@clock --system-call-filter=~sync --system-call-filter=", stock: "252"},
	{args: "-n -p 80 -p udp:80 --network-zone=foo --private-users-ownership=map --oom-score-adjust=500 -- cat /proc/self/oom_score_adj", out: "500"},
	{args: "--read --read-o --host=abc -- hostname", out: "abc"},
}

// shellBytes is a word for bash whose bytes printf '%b' gives back.
func shellBytes(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		fmt.Fprintf(&b, `\x%02x`, c)
	}
	return "'" + b.String() + "'"
}

// plainText takes the colours out.
func plainText(s string) string {
	for _, code := range []string{"\x1b[0;1;31m", "\x1b[0;1;39m", "\x1b[0;38:5:185m", "\x1b[0m"} {
		s = strings.ReplaceAll(s, code, "")
	}
	return s
}

// precedenceFile sets one of each kind; precedenceShow prints what came of it.
const (
	precedenceFile = `[Exec]
Capability=CAP_SYS_TIME
DropCapability=CAP_CHOWN
MachineID=c5e3e2a0111142228333444455556666
LimitNOFILE=100:200
OOMScoreAdjust=5
Hostname=filehost
Environment=A=file
[Files]
TemporaryFileSystem=/opt:mode=0701
[Network]
Private=yes
VirtualEthernetExtra=extra0
`
	precedenceShow = ` -- sh -c 'echo $(hostname) $A $container_uuid $(ulimit -n) $(cat /proc/self/oom_score_adj) $(stat -c %a /opt) $(stat -c %a /mnt) $(ls /sys/class/net | grep -c extra0) $(grep -c "CapEff:.*[013579bdf]$" /proc/self/status)'`
	commandOptions = `--hostname=cli --setenv=A=cli --rlimit=NOFILE=50 --oom-score-adjust=7 --capability=CAP_WAKE_ALARM --tmpfs=/mnt:mode=0702 --uuid=aaaaaaaa111142228333444455556666 --private-network`
	fileWins       = "filehost file c5e3e2a0-1111-4222-8333-444455556666 100 5 701 "
	untrustedSays  = "Ignoring Capability= setting, file /var/lib/machines/box.nspawn is not trusted"
	commandWins    = "cli cli aaaaaaaa-1111-4222-8333-444455556666 50 7 755 702 0 1"
)

// precedenceRows say who wins, the command line or the file.
var precedenceRows = []optionRow{
	{args: precedenceShow[1:], file: precedenceFile, out: fileWins + "755 1 0"},
	{args: "--settings=yes" + precedenceShow, file: precedenceFile, out: fileWins + "755 1 0"},
	{args: "--settings=trusted" + precedenceShow, file: precedenceFile, out: fileWins + "755 1 0"},
	{args: "--settings=override" + precedenceShow, file: precedenceFile, out: fileWins + "755 1 0"},
	{args: commandOptions + precedenceShow, file: precedenceFile, out: commandWins},
	{args: "--settings=trusted " + commandOptions + precedenceShow, file: precedenceFile, out: commandWins},
	{args: "--settings=override " + commandOptions + precedenceShow, file: precedenceFile, out: "filehost file c5e3e2a0-1111-4222-8333-444455556666 100 5 701 "},
	{args: "--settings=no" + precedenceShow, file: precedenceFile, out: "box "},
	{args: "--settings=no --hostname=cli" + precedenceShow, file: precedenceFile, out: "cli "},
	{args: precedenceShow[1:], file: precedenceFile, beside: true, says: untrustedSays, out: "filehost file "},
	{args: "--settings=override" + precedenceShow, file: precedenceFile, beside: true, says: untrustedSays, out: "filehost file "},
	{args: "--settings=trusted" + precedenceShow, file: precedenceFile, beside: true, out: fileWins + "755 1 0"},
	// What starts: the command line's mode and words hide the file's.
	{args: "! -q --register=no -D /var/lib/machines/box --pipe", file: "[Exec]\nParameters=echo \"a b\" c\n", out: ""},
	{args: "! -q --register=no -D /var/lib/machines/box --pipe", file: "[Exec]\nBoot=no\nParameters=echo \"a b\" c\n", out: "a b c"},
	{args: "! -q --register=no -D /var/lib/machines/box --pipe", file: "[Exec]\nProcessTwo=yes\nParameters=sh -c 'echo $$'\n", out: "2"},
	{args: "! -q --register=no -D /var/lib/machines/box --pipe sh -c 'echo $$'", file: "[Exec]\nProcessTwo=yes\nParameters=echo file\n", out: "1"},
	{args: "! -q --register=no -D /var/lib/machines/box --pipe -a sh -c 'echo $$'", file: "[Exec]\nBoot=yes\n", out: "2"},
	{args: "! -q --register=no -D /var/lib/machines/box --pipe --settings=override sh -c 'echo cli'", file: "[Exec]\nProcessTwo=yes\nParameters=sh -c 'echo $$'\n", out: "2"},
	{args: "! -q --register=no -D /var/lib/machines/box --pipe --settings=override sh -c 'echo cli'", file: "[Exec]\nHostname=x\n", out: "cli"},
}
