//go:build integration

package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/tests/host"
)

const (
	machinePath = busPath + "/machine/bb"
	machineIf   = busName + ".Machine"
	imagePath   = busPath + "/image/spare"
	imageIf     = busName + ".Image"
)

// machineTable is the Machine object, method by method: what its Manager twins
// do, without the name.
var machineTable = []apiRow{
	{name: "Terminate", guarded: " ", action: "manage-machines", details: "machine=bb verb=terminate"},
	{name: "Kill", in: "si", guarded: "si leader 18", action: "manage-machines", details: "machine=bb verb=kill", bad: "si leader 4711", want: badArgs},
	{name: "GetAddresses", out: "a(iay)", bad: " ", want: busName + ".NoPrivateNetworking"},
	{name: "GetSSHInfo", out: "ss", since: 256, bad: " ", want: fileMissing},
	{name: "GetOSRelease", out: "a{ss}", bad: "s x", want: badArgs},
	{name: "GetUIDShift", out: "u", bad: "u 5", want: badArgs},
	{name: "OpenPTY", rootOnly: true, out: "hs", guarded: " ", action: "open-pty", details: "machine=bb", bad: "s x", want: badArgs},
	{name: "OpenLogin", out: "hs", guarded: " ", action: "login", details: "machine=bb verb=login", bad: "s x", want: badArgs},
	{name: "OpenShell", in: "ssasas", out: "hs", guarded: "ssasas root /bin/true 2 true x 0", action: "shell",
		details: "machine=bb user=root program=/bin/true command_line=true x", bad: "ssasas root bin/true 0 0", want: badArgs},
	{name: "BindMount", in: "ssbb", guarded: "ssbb /etc /mnt true true", action: "manage-machines", details: "machine=bb verb=bind src=/etc dest=/mnt",
		bad: "ssbb etc /mnt true true", want: badArgs},
	{name: "CopyFrom", in: "ss", guarded: "ss /etc/passwd /tmp/x", action: "manage-machines", details: "machine=bb verb=copy src=/etc/passwd dest=/tmp/x",
		bad: "ss etc /tmp/x", want: badArgs},
	{name: "CopyTo", in: "ss", guarded: "ss /etc/passwd /tmp/x", action: "manage-machines", details: "machine=bb verb=copy src=/etc/passwd dest=/tmp/x",
		bad: "ss /nonexistent /tmp/x", want: fileMissing},
	{name: "CopyFromWithFlags", rootOnly: true, in: "sst", guarded: "sst /etc/passwd /tmp/x 1", action: "manage-machines", details: "machine=bb verb=copy src=/etc/passwd dest=/tmp/x",
		bad: "sst /etc/passwd /tmp/x 2", want: badArgs},
	{name: "CopyToWithFlags", rootOnly: true, in: "sst", guarded: "sst /etc/passwd /tmp/x 0", action: "manage-machines", details: "machine=bb verb=copy src=/etc/passwd dest=/tmp/x",
		bad: "sst /etc/passwd /tmp/x 4", want: badArgs},
	{name: "OpenRootDirectory", rootOnly: true, out: "h", guarded: " ", action: "manage-machines", details: "machine=bb verb=open_root_directory", bad: "s x", want: badArgs},
}

// imageTable is the Image object.
var imageTable = []apiRow{
	{name: "Remove", guarded: " ", action: "manage-images", details: "image=spare verb=remove", bad: "s x", want: badArgs},
	{name: "Rename", in: "s", guarded: "s other", action: "manage-images", details: "image=spare verb=rename new_name=other", bad: "s ../x", want: badArgs},
	{name: "Clone", in: "sb", guarded: "sb other false", action: "manage-images", details: "image=spare verb=clone new_name=other", bad: "sb spare false", want: "org.freedesktop.DBus.Error.FileExists"},
	{name: "MarkReadOnly", in: "b", guarded: "b true", action: "manage-images", details: "image=spare verb=mark_read_only read_only=1", bad: "s x", want: badArgs},
	{name: "SetLimit", in: "t", guarded: "t 1000000", action: "manage-images", details: "machine=spare verb=set_limit", bad: "t 1000000", want: noSupport},
	{name: "GetHostname", out: "s", bad: "s x", want: badArgs},
	{name: "GetMachineID", out: "ay", bad: "s x", want: badArgs},
	{name: "GetMachineInfo", out: "a{ss}", bad: "s x", want: badArgs},
	{name: "GetOSRelease", out: "a{ss}", bad: "s x", want: badArgs},
}

// TestObjects goes through the Machine and the Image object as TestAPI goes
// through the Manager.
func TestObjects(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		h.BusyboxTree(t, "spare")
		h.WriteFile(t, "/call.py", callScript, 0o644)
		h.WriteFile(t, "/etc/polkit-1/rules.d/10-log.rules", logRule, 0o644)
		h.MustRun(t, "systemctl", "restart", "polkit.service")
		p := h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "sleep", "1000000")
		waitMachine(t, h, "bb")
		conn := h.Bus(t)
		for _, object := range []struct {
			path  godbus.ObjectPath
			iface string
			table []apiRow
		}{{machinePath, machineIf, machineTable}, {imagePath, imageIf, imageTable}} {
			shapes := shapesOf(t, conn, object.path, object.iface)
			for _, row := range object.table {
				if stockLacks(h, row.since) {
					continue
				}
				row.path, row.iface = string(object.path), object.iface
				if got, want := shapes[row.name], row.in+" → "+row.out; got != want {
					t.Errorf("%s: signature %q, want %q", row.name, got, want)
				}
				delete(shapes, row.name)
				if row.bad != "" {
					if got := managerError(h, row, row.bad); got != row.want {
						t.Errorf("%s %s: got %s, want %s", row.name, row.bad, got, row.want)
					}
				}
				if row.guarded != "" && !(row.rootOnly && h.Impl == host.Stock) {
					asked(t, h, row)
				}
			}
			for name, shape := range shapes {
				t.Errorf("%s %s %s is in no row", object.iface, name, shape)
			}
		}
		for _, path := range []string{busPath + "/machine/nope", busPath + "/image/nope", busPath + "/machine/self"} {
			for _, iface := range []string{machineIf, imageIf} {
				row := apiRow{name: "GetOSRelease", path: path, iface: iface}
				if got := managerError(h, row, ""); got != "org.freedesktop.DBus.Error.UnknownObject" {
					t.Errorf("%s of %s: got %s, want UnknownObject", row.name, path, got)
				}
			}
		}
		if !p.Running() {
			t.Errorf("the machine died: %s", p.Output())
		}
	})
}

// apiProperty is one property: its type, since when stock has it, and its value
// where the test knows it.
type apiProperty struct {
	name, typ string
	since     int
	want      any
}

var (
	managerProperties = []apiProperty{
		{name: "PoolPath", typ: "s", want: "/var/lib/machines"}, {name: "PoolUsage", typ: "t"}, {name: "PoolLimit", typ: "t"},
	}
	machineProperties = []apiProperty{
		{name: "Name", typ: "s", want: "bb"}, {name: "Id", typ: "ay"}, {name: "Timestamp", typ: "t"}, {name: "TimestampMonotonic", typ: "t"},
		{name: "Service", typ: "s", want: "systemd-nspawn"}, {name: "Unit", typ: "s", want: "machine-bb.scope"}, {name: "Leader", typ: "u"},
		{name: "Class", typ: "s", want: "container"}, {name: "RootDirectory", typ: "s", want: "/var/lib/machines/bb"},
		{name: "NetworkInterfaces", typ: "ai"}, {name: "State", typ: "s", want: "running"},
		{name: "VSockCID", typ: "u", since: 256, want: ^uint32(0)}, {name: "SSHAddress", typ: "s", since: 256, want: ""}, {name: "SSHPrivateKeyPath", typ: "s", since: 256, want: ""},
		{name: "Subgroup", typ: "s", since: 258}, {name: "LeaderPIDFDId", typ: "t", since: 258}, {name: "Supervisor", typ: "u", since: 258},
		{name: "SupervisorPIDFDId", typ: "t", since: 258}, {name: "UID", typ: "u", since: 258, want: uint32(0)},
	}
	imageProperties = []apiProperty{
		{name: "Name", typ: "s", want: "spare"}, {name: "Path", typ: "s", want: "/var/lib/machines/spare"}, {name: "Type", typ: "s", want: "directory"},
		{name: "ReadOnly", typ: "b", want: false}, {name: "CreationTimestamp", typ: "t"}, {name: "ModificationTimestamp", typ: "t"},
		{name: "Usage", typ: "t", want: ^uint64(0)}, {name: "Limit", typ: "t", want: ^uint64(0)},
		{name: "UsageExclusive", typ: "t", want: ^uint64(0)}, {name: "LimitExclusive", typ: "t", want: ^uint64(0)},
	}
)

// TestProperties reads every property alone and all at once.
func TestProperties(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		h.BusyboxTree(t, "spare")
		h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "sleep", "1000000")
		waitMachine(t, h, "bb")
		conn := h.Bus(t)
		for _, o := range []struct {
			path  godbus.ObjectPath
			iface string
			table []apiProperty
		}{{busPath, managerIf, managerProperties}, {machinePath, machineIf, machineProperties}, {imagePath, imageIf, imageProperties}} {
			object := conn.Object(busName, o.path)
			var all map[string]godbus.Variant
			if err := object.Call("org.freedesktop.DBus.Properties.GetAll", 0, o.iface).Store(&all); err != nil {
				t.Fatalf("all properties of %s: %v", o.path, err)
			}
			for _, p := range o.table {
				if stockLacks(h, p.since) {
					continue
				}
				one, err := object.GetProperty(o.iface + "." + p.name)
				if err != nil {
					t.Errorf("%s of %s: %v", p.name, o.path, err)
					continue
				}
				if one.String() != all[p.name].String() && p.typ != "t" {
					t.Errorf("%s of %s: %v alone, %v among all", p.name, o.path, one, all[p.name])
				}
				if got := one.Signature().String(); got != p.typ {
					t.Errorf("%s of %s: type %s, want %s", p.name, o.path, got, p.typ)
				}
				if p.want != nil && one.Value() != p.want {
					t.Errorf("%s of %s: got %v, want %v", p.name, o.path, one, p.want)
				}
				err = object.SetProperty(o.iface+"."+p.name, one)
				if name, _ := errorName(err); name != "org.freedesktop.DBus.Error.PropertyReadOnly" {
					t.Errorf("set %s of %s: got %v, want PropertyReadOnly", p.name, o.path, err)
				}
				delete(all, p.name)
			}
			for name, value := range all {
				t.Errorf("property %s of %s, %v, is in no row", name, o.path, value)
			}
		}
		scope, err := conn.Object(busName, machinePath).GetProperty(machineIf + ".Scope") // the old name, which is not listed
		if err != nil || scope.Value() != "machine-bb.scope" {
			t.Errorf("Scope: got %v, %v", scope, err)
		}
	})
}

// TestSignals follows a machine by its signals: MachineNew once, with the path
// that answers, before the reply of who created it; MachineRemoved once, when
// it is gone; and nothing else from the daemon.
func TestSignals(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.MustRun(t, "machinectl", "list") // the daemon runs: its start tells of old machines
		conn := h.Bus(t)
		if err := conn.AddMatchSignal(godbus.WithMatchSender(busName)); err != nil {
			t.Fatal(err)
		}
		signals := make(chan *godbus.Signal, 64)
		conn.Signal(signals)
		p := h.Start(t, "sh", "-c", "sleep 1000000 & echo pid $!; echo all; wait")
		var pid uint32
		if _, err := fmt.Sscanf(p.Expect(t, "all"), "pid %d", &pid); err != nil {
			t.Fatal(err)
		}
		var path godbus.ObjectPath
		err := call(conn, "CreateMachine", "x.y-1", []byte{}, "test", "container", pid, "", []struct {
			Name  string
			Value godbus.Variant
		}{}).Store(&path)
		if err != nil {
			t.Fatal(err)
		}
		if want := godbus.ObjectPath(busPath + "/machine/x_2ey_2d1"); path != want {
			t.Errorf("path: got %s, want %s", path, want)
		}
		var got []string
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		next := func() string {
			for {
				select {
				case s := <-signals:
					if !strings.HasPrefix(s.Name, "org.freedesktop.DBus.") { // of the bus itself
						return fmt.Sprint(s.Path, " ", strings.TrimPrefix(s.Name, managerIf+"."), " ", s.Body)
					}
				case <-ctx.Done():
					return "nothing"
				}
			}
		}
		got = append(got, next())
		start := time.Now()
		h.MustRun(t, "kill", fmt.Sprint(pid))
		got = append(got, next())
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("its end was told after %v", took)
		}
		want := []string{
			fmt.Sprintf("%s MachineNew [x.y-1 %s]", busPath, path),
			fmt.Sprintf("%s MachineRemoved [x.y-1 %s]", busPath, path),
		}
		if !slices.Equal(got, want) {
			t.Errorf("signals: got %q, want %q", got, want)
		}
		if name, _ := errorName(conn.Object(busName, path).Call(machineIf+".GetUIDShift", 0).Err); name != "org.freedesktop.DBus.Error.UnknownObject" {
			t.Errorf("an object that is gone: got %s, want UnknownObject", name)
		}
		if n := len(signals); n > 0 {
			t.Errorf("%d more signals: %v", n, next())
		}
	})
}

// TestTree compares the objects that busctl finds, ours and stock's in one host.
func TestTree(t *testing.T) {
	ours(t)
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		h.BusyboxTree(t, "a.b")
		h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "sleep", "1000000")
		waitMachine(t, h, "bb")
		look := func() string {
			var out strings.Builder
			out.WriteString(h.MustRun(t, "busctl", "tree", "--list", busName))
			for _, path := range []string{"/", "/org", "/org/freedesktop", busPath, busPath + "/machine", busPath + "/image", busPath + "/machine/nope"} {
				r := h.Try("busctl", "introspect", busName, path)
				if r.Exit != 0 {
					fmt.Fprintf(&out, "%s: %s", path, r.Stderr)
					continue
				}
				for line := range strings.Lines(r.Stdout) {
					if f := strings.Fields(line); len(f) > 1 && f[1] == "interface" && f[0] != "org.machined.Manager1" {
						fmt.Fprintf(&out, "%s %s\n", path, f[0])
					}
				}
			}
			return out.String()
		}
		own := look()
		h.RunStockDaemon(t)
		if stock := look(); own != stock {
			t.Errorf("got:\n%s\nstock has:\n%s", own, stock)
		}
	})
}
