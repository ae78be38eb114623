package registry

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestStateFile(t *testing.T) {
	m := Machine{
		Name: "deb", ID: [16]byte{0x72, 0x1d, 15: 0x8e}, Service: "it is $x", Class: ClassContainer,
		RootDirectory: `/a b"c`, Unit: `machine-a\x2db.scope`, Subgroup: "payload",
		Leader: Process{187, 4711}, Supervisor: Process{186, 0},
		Realtime: time.UnixMicro(1795408362165942), Monotonic: 3477268629 * time.Microsecond,
		NetIfs: []int{3, 4}, UID: 1000, VSockCID: 7, SSHAddress: "vsock/7", SSHPrivateKey: "/k", ControlAddress: "/c",
	}
	const want = `# This is private data. Do not parse.
NAME=deb
UID=1000
SCOPE="machine-a\\x2db.scope"
SERVICE="it is \$x"
ROOT="/a b\"c"
ID=721d000000000000000000000000008e
LEADER=187
LEADER_PIDFDID=4711
SUPERVISOR=186
CLASS=container
REALTIME=1795408362165942
MONOTONIC=3477268629
NETIF=" 3 4"
VSOCK_CID=7
SSH_ADDRESS=vsock/7
SSH_PRIVATE_KEY_PATH=/k
CONTROL_ADDRESS=/c
SUBGROUP=payload
`
	var b bytes.Buffer
	if err := writeState(&b, &m); err != nil || b.String() != want {
		t.Errorf("state file:\n%s\nwant (%v):\n%s", b.String(), err, want)
	}
	got, err := parseState(&b)
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("read back: %+v, %v; want %+v", got, err, m)
	}
}

func TestParseStockState(t *testing.T) {
	// As systemd 252 writes it: spaces without quotes, unknown keys.
	const text = "# This is private data. Do not parse.\nNAME=t1\nSCOPE=machine-a\\\\x2db.scope\nSCOPE_JOB=/org/x\n" +
		"SERVICE=it is $x\nROOT=/a b\nLEADER=178\nFUTURE=1\nCLASS=vm\nREALTIME=5\nMONOTONIC=6\nNETIF=2"
	m, err := parseState(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if m.Unit != `machine-a\x2db.scope` || m.Service != "it is $x" || m.RootDirectory != "/a b" || m.Leader.PID != 178 ||
		m.Class != ClassVM || len(m.NetIfs) != 1 || m.VSockCID != VSockCIDAny {
		t.Errorf("got %+v", m)
	}
}

func FuzzParseState(f *testing.F) {
	f.Add("NAME=a\nROOT=\"/x \\\" y\"\nNETIF=\" 3\"\n")
	f.Add("NAME='a'\\\nb\nID=00\nLEADER=99999999999999999999")
	f.Add("NAME=a\nROOT=\"never closed\nCLASS=vm")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := parseState(strings.NewReader(text))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := writeState(&b, &m); err != nil {
			t.Fatal(err)
		}
		if b.Len() > maxStateBytes {
			return
		}
		again, err := parseState(bytes.NewReader(b.Bytes()))
		// Absent processes lose their pidfd, a time of zero its pair.
		if m.Leader.PID == 0 {
			m.Leader.FDID = 0
		}
		if m.Supervisor.PID == 0 {
			m.Supervisor.FDID = 0
		}
		if m.Realtime.IsZero() {
			m.Monotonic = 0
		}
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Errorf("%q: wrote\n%s\nfrom %+v, read %+v, %v", text, b.String(), m, again, err)
		}
	})
}
