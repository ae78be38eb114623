package settings

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const whole = `# a comment
[Exec]
Boot=no
ProcessTwo=yes
Parameters=/bin/sh -c "echo \"a b\"" 'c d' \
# in between
  last
Environment=A=1 "B=two words"
Environment=C=
Capability=CAP_NET_ADMIN CAP_SYS_TIME
DropCapability=CAP_SYS_BOOT
KillSignal=SIGRTMIN+3
MachineID=5ce9d0bc-4b4d-4f21-9b16-9b4ae1c7e2a1
PrivateUsers=pick
LimitNOFILE=1024:4096
LimitCORE=1G
LimitCPU=1min
LimitNICE=-5
LimitRTTIME=infinity
OOMScoreAdjust=-7
CPUAffinity=0-2 5,2
SystemCallFilter=@keyring
SystemCallFilter=~@mount bpf
LinkJournal=try-guest
X-Other=ignored
[Files]
Bind=/a:/b:norbind,rootidmap
BindReadOnly=+/c
Bind=:/tmp/fresh
TemporaryFileSystem=/t:mode=0700
Inaccessible=/secret
Overlay=+/l1:/l2:/u:/d
Overlay=/with\:colon:/u2
BindUser=joe
[Network]
Private=yes
VirtualEthernetExtra=a:b c
MACVLAN=a-rather-long1
Zone=web
Port=udp:53:5353 80
[X-Mine]
Foo=bar
`

func parse(t *testing.T, text string) (*File, []Warning) {
	t.Helper()
	f, w, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return f, w
}

func TestWhole(t *testing.T) {
	t.Parallel()
	f, w := parse(t, whole)
	if len(w) != 0 {
		t.Errorf("warnings: %v", w)
	}
	yes := true
	oom := -7
	id := [16]byte{0x5c, 0xe9, 0xd0, 0xbc, 0x4b, 0x4d, 0x4f, 0x21, 0x9b, 0x16, 0x9b, 0x4a, 0xe1, 0xc7, 0xe2, 0xa1}
	want := &File{
		StartMode: StartPID2, Parameters: []string{"/bin/sh", "-c", `echo "a b"`, "c d", "last"},
		Environment: []string{"A=1", "B=two words", "C="}, Capability: 1<<12 | 1<<25, DropCapability: 1 << 22,
		KillSignal: unix.Signal(37), MachineID: &id, PrivateUsers: &PrivateUsers{Mode: UserPick}, Ownership: "auto",
		Limits: map[string]Limit{
			"NOFILE": {1024, 4096}, "CORE": {1 << 30, 1 << 30}, "CPU": {60, 60}, "NICE": {25, 25},
			"RTTIME": {unix.RLIM_INFINITY, unix.RLIM_INFINITY},
		},
		OOMScoreAdjust: &oom, CPUAffinity: []int{0, 1, 2, 5},
		SystemCallAllow: []string{"@keyring"}, SystemCallDeny: []string{"@mount", "bpf"},
		LinkJournal: "guest", LinkJournalTry: true,
		Mounts: []Mount{
			{Kind: MountBind, Sources: []Source{{Path: "/a"}}, Destination: "/b", Bind: BindOptions{NonRecursive: true, IDMap: IDMapRoot}},
			{Kind: MountBind, Sources: []Source{{Path: "/c", InImage: true}}, Destination: "/c", ReadOnly: true},
			{Kind: MountBind, Sources: []Source{{}}, Destination: "/tmp/fresh"},
			{Kind: MountTmpfs, Destination: "/t", Options: "mode=0700"},
			{Kind: MountInaccessible, Destination: "/secret"},
			{Kind: MountOverlay, Sources: []Source{{"/l1", true}, {Path: "/l2"}, {Path: "/u"}}, Destination: "/d"},
			{Kind: MountOverlay, Sources: []Source{{Path: "/with:colon"}, {Path: "/u2"}}, Destination: "/u2"},
		},
		BindUsers: []string{"joe"}, Private: &yes,
		VirtualEthernetExtra: []Link{{"a", "b"}, {"c", "c"}},
		MACVLANs:             f.MACVLANs, Zone: "web",
		Ports: []Port{{"udp", 53, 5353}, {"tcp", 80, 80}},
	}
	if !reflect.DeepEqual(f, want) {
		t.Errorf("got  %+v\nwant %+v", f, want)
	}
	if l := f.MACVLANs[0]; len(l.Container) != 15 || !strings.HasPrefix(l.Container, "mv-a-rather") {
		t.Errorf("macvlan: %+v", l)
	}
	if !f.PrivateNetwork() || !f.Veth() {
		t.Error("network is not private, or has no veth though it has a zone")
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ text, want string }{
		{"Boot=yes", "1: Assignment outside of section. Ignoring."},
		{"[Exec]\nBoot=maybe", `2: Failed to parse Boot= parameter maybe, ignoring: Invalid argument ("maybe" is not a boolean)`},
		{"[Exec]\nFoo=1", "2: Unknown key 'Foo' in section [Exec], ignoring."},
		{"[Service]\nFoo=1", "1: Unknown section 'Service'. Ignoring."},
		{"[Exec]\nnonsense", "2: Missing '=', ignoring line."},
		{"[Exec]\nBoot=1\nProcessTwo=1", "3: Conflicting Boot= or ProcessTwo= setting found. Ignoring."},
	} {
		f, w := parse(t, tt.text)
		if len(w) != 1 || w[0].In("f") != "f:"+tt.want {
			t.Errorf("%q: got %v, want %q", tt.text, w, tt.want)
		}
		if f.StartMode != StartUnset {
			t.Errorf("%q: start mode %v", tt.text, f.StartMode)
		}
	}
	// each of these is passed over with one warning
	for _, line := range []string{
		"[Files]\nBind=relative", "[Files]\nBind=", "[Files]\nBind=/a:/b:/c:/d", "[Files]\nBind=/a/../b",
		"[Files]\nOverlay=/a", "[Files]\nOverlay=:/a:/b", "[Files]\nVolatile=-1", "[Files]\nInaccessible=", "[Files]\nTemporaryFileSystem=x",
		"[Network]\nPort=0", "[Network]\nPort=65536", "[Network]\nPort=icmp:1", "[Network]\nPort=1:2:3", "[Network]\nPort=-1", "[Network]\nPort=1:",
		"[Network]\nZone=much-too-long-name", "[Network]\nBridge=a/b", "[Network]\nNamespacePath=x",
		"[Exec]\nLimitNOFILE=2:1", "[Exec]\nLimitNOFILE=x", "[Exec]\nLimitNOFILE==", "[Exec]\nLimitFOO=1", "[Exec]\nKillSignal=99",
		"[Exec]\nMachineID=00000000000000000000000000000000", "[Exec]\nMachineID=x",
		"[Exec]\nPrivateUsers=x", "[Exec]\nPrivateUsers=4294967295:5", "[Exec]\nPrivateUsers=5:0", "[Exec]\nOOMScoreAdjust=1001",
		"[Exec]\nEnvironment=1A=x", "[Exec]\nParameters=\"open", "[Exec]\nHostname=-a", "[Exec]\nWorkingDirectory=a", "[Exec]\nPivotRoot=/a:b",
		"[Exec]\nCapability=CAP_NONE", "[Exec]\nPersonality=z80", "[Exec]\nResolvConf=x", "[Exec]\nTimezone=x", "[Exec]\nLinkJournal=x",
	} {
		if _, w := parse(t, line); len(w) != 1 || w[0].Line != 2 {
			t.Errorf("%q: warnings %v, want one about line 2", line, w)
		}
	}
}

func TestBroken(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"[Exec\nBoot=1", "[Exec]\nUser=\xff", "[Exec]\nCPUAffinity=5-2", "[Exec]\nCPUAffinity=99999", "[Network]\nInterface=a:", "[Network]\nMACVLAN=a/b", "[Exec]\n" + strings.Repeat("x", maxLine+1), "[Exec]\n" + strings.Repeat("x\\\n", maxLine)} {
		if _, _, err := Parse(strings.NewReader(text)); err == nil {
			t.Errorf("%.20q: no error", text)
		}
	}
}

func TestResets(t *testing.T) {
	t.Parallel()
	f, w := parse(t, "[Exec]\nEnvironment=A=1\nEnvironment=\nParameters=a\nParameters=b\nSystemCallFilter=@aio\nSystemCallFilter=\nBoot=yes\nBoot=\n[Files]\nBindUser=a\nBindUser=\nBindUser=b\n[Network]\nPort=80\nPort=\n")
	want := &File{Parameters: []string{"b"}, BindUsers: []string{"b"}}
	if len(w) != 0 || !reflect.DeepEqual(f, want) {
		t.Errorf("got %+v, %v", f, w)
	}
}

func TestDropUntrusted(t *testing.T) {
	t.Parallel()
	f, _ := parse(t, whole)
	w := f.DropUntrusted()
	if len(w) != 16 {
		t.Errorf("%d warnings: %v", len(w), w)
	}
	want := &File{
		StartMode: StartPID2, Parameters: f.Parameters, Environment: f.Environment,
		DropCapability: 1 << 22, KillSignal: unix.Signal(37),
	}
	if !reflect.DeepEqual(f, want) {
		t.Errorf("left: %+v", f)
	}
	if again := f.DropUntrusted(); len(again) != 0 {
		t.Errorf("again: %v", again)
	}
	deny, _ := parse(t, "[Exec]\nSystemCallFilter=~@mount\n")
	if w := deny.DropUntrusted(); len(w) != 0 || len(deny.SystemCallDeny) != 1 {
		t.Errorf("deny list was dropped: %v", w)
	}
}

func TestPrivateUsers(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]PrivateUsers{
		"no": {}, "yes": {Mode: UserRoot}, "pick": {Mode: UserPick}, "identity": {Mode: UserIdentity}, "0": {}, "1": {Mode: UserRoot},
		"524288": {UserFixed, 524288, 65536}, "65536:100": {UserFixed, 65536, 100}, "managed": {Mode: UserManaged},
	} {
		if got, err := ParsePrivateUsers(in); err != nil || got != want {
			t.Errorf("%q: got %+v, %v; want %+v", in, got, err, want)
		}
	}
}

func TestSignals(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]unix.Signal{"TERM": 15, "SIGTERM": 15, "9": 9, "RTMIN+3": 37, "SIGRTMAX-1": 63, "SIGRTMIN": 34} {
		if got, err := ParseSignal(in); err != nil || got != want {
			t.Errorf("%q: got %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "SIG", "0", "65", "RTMIN3", "RTMAX+1", "NOPE"} {
		if got, err := ParseSignal(in); err == nil {
			t.Errorf("%q: got %d", in, got)
		}
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	etc, run, img := t.TempDir(), t.TempDir(), t.TempDir()
	write := func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "m.nspawn"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	find := func() (string, bool, bool) { return FindIn([]string{etc, run}, "m", filepath.Join(img, "m")+"/") }
	if _, _, ok := find(); ok {
		t.Error("found nothing's file")
	}
	write(img)
	if p, trusted, ok := find(); !ok || trusted || filepath.Dir(p) != img {
		t.Errorf("got %q, %v, %v", p, trusted, ok)
	}
	write(run)
	write(etc)
	if p, trusted, ok := find(); !ok || !trusted || filepath.Dir(p) != etc {
		t.Errorf("got %q, %v, %v", p, trusted, ok)
	}
	for _, name := range []string{"", "..", "../m", "a/b"} {
		if _, _, ok := FindIn([]string{etc}, name, ""); ok {
			t.Errorf("name %q found", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(whole)
	f.Add("[Exec]\nParameters=\\x41 \\u20ac \"\nBoot=1\n")
	f.Add("[Files]\nBind=a\\:b:c\\\nOverlay=:::\n")
	f.Fuzz(func(t *testing.T, s string) {
		file, _, err := Parse(strings.NewReader(s))
		if err != nil {
			return
		}
		for _, m := range file.Mounts {
			if !strings.HasPrefix(m.Destination, "/") || strings.Contains("/"+m.Destination+"/", "/../") {
				t.Fatalf("destination %q", m.Destination)
			}
		}
		file.DropUntrusted()
		if file.PrivateNetwork() || len(file.Mounts)+len(file.Ports)+len(file.Limits) > 0 || file.Capability|file.AmbientCapability != 0 {
			t.Fatalf("left: %+v", file)
		}
	})
}
