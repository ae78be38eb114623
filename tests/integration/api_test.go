//go:build integration

package integration

import (
	"encoding/xml"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/tests/host"
)

// apiRow is one method of org.freedesktop.machine1(5): what it is, how a user
// without rights is asked about, and the errors of root's plain mistakes.
type apiRow struct {
	name    string
	in, out string
	since   int // stock's version; 0: in 252 already

	// guarded is a call, as busctl takes its arguments, that polkit is asked
	// about with action and details; "" for a method that nobody asks about.
	guarded  string
	action   string
	details  string
	rootOnly bool // stock's bus policy lets nobody else call it

	bad  string // arguments of a call that fails
	want string // its error

	path, iface string // the object; "" for the Manager
}

// call is the row's call, for a shell.
func (row apiRow) call(arguments string) string {
	return fmt.Sprintf("CALL_PATH=%s CALL_IFACE=%s python3 /call.py %s %s", row.path, row.iface, row.name, shellWords(arguments))
}

const (
	noMachine   = busName + ".NoSuchMachine"
	noImage     = busName + ".NoSuchImage"
	noUserMap   = busName + ".NoSuchUserMapping"
	noGroupMap  = busName + ".NoSuchGroupMapping"
	badArgs     = "org.freedesktop.DBus.Error.InvalidArgs"
	noSupport   = "org.freedesktop.DBus.Error.NotSupported"
	denied      = "org.freedesktop.DBus.Error.AccessDenied"
	askFirst    = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
	fileMissing = "org.freedesktop.DBus.Error.FileNotFound"
)

// apiTable is the Manager, method by method.
var apiTable = []apiRow{
	{name: "GetMachine", in: "s", out: "o", bad: "s nope", want: noMachine},
	{name: "GetMachineByPID", in: "u", out: "o", bad: "u 2", want: busName + ".NoMachineForPID"},
	{name: "GetImage", in: "s", out: "o", bad: "s nope", want: noImage},
	{name: "ListMachines", out: "a(ssso)"},
	{name: "ListImages", out: "a(ssbttto)"},
	{name: "CreateMachine", in: "sayssusa(sv)", out: "o", bad: "sayssusa(sv) a_b 0 t container 0 / 0", want: badArgs},
	{name: "CreateMachineWithNetwork", in: "sayssusaia(sv)", out: "o", bad: "sayssusaia(sv) x 0 t container 0 / 1 -1 0", want: badArgs},
	{name: "CreateMachineEx", in: "sa(sv)a(sv)", out: "o", since: 259, bad: "sa(sv)a(sv) x 1 Nope s x 0", want: badArgs},
	{name: "RegisterMachine", in: "sayssus", out: "o", bad: "sayssus x 0 t container 1 /", want: badArgs},
	{name: "RegisterMachineWithNetwork", in: "sayssusai", out: "o", bad: "sayssusai x 1 7 t container 0 / 0", want: badArgs},
	{name: "RegisterMachineEx", in: "sa(sv)", out: "o", since: 259, bad: "sa(sv) x 1 LeaderPID u 2", want: badArgs},
	{name: "UnregisterMachine", in: "s", guarded: "s bb", action: "manage-machines", details: "machine=bb verb=unregister", bad: "s nope", want: noMachine},
	{name: "TerminateMachine", in: "s", guarded: "s bb", action: "manage-machines", details: "machine=bb verb=terminate", bad: "s nope", want: noMachine},
	{name: "KillMachine", in: "ssi", guarded: "ssi bb leader 18", action: "manage-machines", details: "machine=bb verb=kill", bad: "ssi bb leader 4711", want: badArgs},
	{name: "GetMachineAddresses", in: "s", out: "a(iay)", bad: "s bb", want: busName + ".NoPrivateNetworking"},
	{name: "GetMachineSSHInfo", in: "s", out: "ss", since: 256, bad: "s bb", want: fileMissing},
	{name: "GetMachineOSRelease", in: "s", out: "a{ss}", bad: "s nope", want: noMachine},
	{name: "OpenMachinePTY", rootOnly: true, in: "s", out: "hs", guarded: "s bb", action: "open-pty", details: "machine=bb", bad: "s nope", want: noMachine},
	{name: "OpenMachineLogin", in: "s", out: "hs", guarded: "s bb", action: "login", details: "machine=bb verb=login", bad: "s nope", want: noMachine},
	{name: "OpenMachineShell", in: "sssasas", out: "hs", guarded: "sssasas bb root /bin/true 2 true x 0", action: "shell",
		details: "machine=bb user=root program=/bin/true command_line=true x", bad: "sssasas bb root bin/true 0 0", want: badArgs},
	{name: "BindMountMachine", in: "sssbb", guarded: "sssbb bb /etc /mnt true true", action: "manage-machines", details: "machine=bb verb=bind src=/etc dest=/mnt",
		bad: "sssbb bb etc /mnt true true", want: badArgs},
	{name: "CopyFromMachine", in: "sss", guarded: "sss bb /etc/passwd /tmp/x", action: "manage-machines", details: "machine=bb verb=copy src=/etc/passwd dest=/tmp/x",
		bad: "sss .host /etc /tmp", want: noSupport},
	{name: "CopyToMachine", in: "sss", guarded: "sss bb /etc/passwd /tmp/x", action: "manage-machines", details: "machine=bb verb=copy src=/etc/passwd dest=/tmp/x",
		bad: "sss bb etc /tmp", want: badArgs},
	{name: "CopyFromMachineWithFlags", rootOnly: true, in: "ssst", guarded: "ssst bb /etc/passwd /tmp/x 1", action: "manage-machines", details: "machine=bb verb=copy src=/etc/passwd dest=/tmp/x",
		bad: "ssst bb /etc/passwd /tmp/x 2", want: badArgs},
	{name: "CopyToMachineWithFlags", rootOnly: true, in: "ssst", guarded: "ssst bb /etc/passwd /tmp/x 0", action: "manage-machines", details: "machine=bb verb=copy src=/etc/passwd dest=/tmp/x",
		bad: "ssst bb /etc/passwd /tmp/x 4", want: badArgs},
	{name: "OpenMachineRootDirectory", rootOnly: true, in: "s", out: "h", guarded: "s bb", action: "manage-machines", details: "machine=bb verb=open_root_directory", bad: "s nope", want: noMachine},
	{name: "GetMachineUIDShift", in: "s", out: "u", bad: "s nope", want: noMachine},
	{name: "RemoveImage", in: "s", guarded: "s spare", action: "manage-images", details: "image=spare verb=remove", bad: "s nope", want: noImage},
	{name: "RenameImage", in: "ss", guarded: "ss spare other", action: "manage-images", details: "image=spare verb=rename new_name=other", bad: "ss spare ../x", want: badArgs},
	{name: "CloneImage", in: "ssb", guarded: "ssb spare other false", action: "manage-images", details: "image=spare verb=clone new_name=other", bad: "ssb nope x false", want: noImage},
	{name: "MarkImageReadOnly", in: "sb", guarded: "sb spare true", action: "manage-images", details: "image=spare verb=mark_read_only read_only=1", bad: "sb nope true", want: noImage},
	{name: "SetImageLimit", in: "st", guarded: "st spare 1000000", action: "manage-images", details: "machine=spare verb=set_limit", bad: "st nope 1000000", want: noImage},
	{name: "GetImageHostname", in: "s", out: "s", bad: "s nope", want: noImage},
	{name: "GetImageMachineID", in: "s", out: "ay", bad: "s nope", want: noImage},
	{name: "GetImageMachineInfo", in: "s", out: "a{ss}", bad: "s nope", want: noImage},
	{name: "GetImageOSRelease", in: "s", out: "a{ss}", bad: "s ..", want: badArgs},
	{name: "SetPoolLimit", in: "t", guarded: "t 1000000", action: "manage-machines", details: "verb=set_pool_limit"},
	{name: "CleanPool", in: "s", out: "a(st)", guarded: "s hidden", action: "manage-machines", details: "verb=clean_pool mode=hidden", bad: "s some", want: badArgs},
	{name: "MapFromMachineUser", in: "su", out: "u", bad: "su .host 0", want: badArgs},
	{name: "MapToMachineUser", in: "u", out: "sou", bad: "u 0", want: noUserMap},
	{name: "MapFromMachineGroup", in: "su", out: "u", bad: "su nope 0", want: noMachine},
	{name: "MapToMachineGroup", in: "u", out: "sou", bad: "u 0", want: noGroupMap},
}

// registrations are rows in which the newest stock asks polkit; the bus policy
// of 252 and 257 lets nobody but root call these.
var registrations = []apiRow{
	{name: "CreateMachine", guarded: "sayssusa(sv) x 0 t container PID / 0", action: "create-machine", details: "name=x class=container"},
	{name: "RegisterMachine", guarded: "sayssus x 0 t container PID /", action: "register-machine", details: "name=x class=container"},
	{name: "CreateMachineEx", guarded: "sa(sv)a(sv) x 1 Class s container 0", action: "create-machine", details: "name=x class=container"},
	{name: "RegisterMachineEx", guarded: "sa(sv) x 1 Class s vm", action: "register-machine", details: "name=x class=vm"},
}

// mistakes are more calls of root's that fail, the same way with stock.
var mistakes = []struct{ name, arguments, want string }{
	{"UnregisterMachine", "s .host", "OK"}, // and nothing happens
	{"TerminateMachine", "s .host", noSupport},
	{"KillMachine", "ssi .host leader 18", noSupport},
	{"GetMachineByPID", "u 4294967295", badArgs},
	{"GetMachineByPID", "u 0", busName + ".NoMachineForPID"},
	{"GetMachineByPID", "u 1", busName + ".NoMachineForPID"},
	{"GetMachineAddresses", "s nope", noMachine},
	{"GetMachineSSHInfo", "s nope", noMachine},
	{"GetMachineUIDShift", "s vmachine", noSupport},
	{"GetMachineAddresses", "s vmachine", noSupport},
	{"GetMachineOSRelease", "s vmachine", noSupport},
	{"OpenMachinePTY", "s vmachine", noSupport},
	{"OpenMachineLogin", "s vmachine", noSupport},
	{"OpenMachineShell", "sssasas vmachine root /bin/sh 0 0", noSupport},
	{"OpenMachineRootDirectory", "s vmachine", noSupport},
	{"BindMountMachine", "sssbb vmachine /etc /mnt true true", noSupport},
	{"CopyToMachine", "sss vmachine /etc/passwd /tmp/x", noSupport},
	{"CopyFromMachine", "sss vmachine /etc/passwd /tmp/x", noSupport},
	{"MapFromMachineUser", "su vmachine 0", badArgs},
	{"RemoveImage", "s .host", "System.Error.EROFS"},
	{"RenameImage", "ss .host other", "System.Error.EROFS"},
	{"MarkImageReadOnly", "sb .host true", "System.Error.EROFS"},
	{"SetImageLimit", "st .host 1000000", "System.Error.EROFS"},
	{"GetImage", "s ..", noImage},
	{"GetImageHostname", "s .#x", badArgs},
	{"RemoveImage", "s a/b", badArgs},
	{"CloneImage", "ssb spare spare false", "org.freedesktop.DBus.Error.FileExists"},
	{"GetMachine", "s ../bb", noMachine},
	{"GetMachine", "s .bb", noMachine},
	{"KillMachine", "ssi bb leader 0", badArgs},
	{"KillMachine", "ssi bb nobody 15", badArgs},
	{"KillMachine", "ssi nope leader 15", noMachine},
	{"CreateMachine", "sayssusa(sv) x 3 1 2 3 t container 0 / 0", badArgs},
	{"CreateMachine", "sayssusa(sv) x 0 t host 0 / 0", badArgs},
	{"CreateMachine", "sayssusa(sv) x 0 t other 0 / 0", badArgs},
	{"CreateMachine", "sayssusa(sv) x 0 t container 0 relative 0", badArgs},
	{"CreateMachine", "sayssusa(sv) bb 0 t container 0 / 0", busName + ".MachineExists"},
	{"CreateMachine", "sayssusa(sv) .host 0 t container 0 / 0", badArgs},
	{"CreateMachine", "sayssusa(sv) -x 0 t container 0 / 0", badArgs},
	{"RegisterMachine", "sayssus x 0 t container 4194000 /", "org.freedesktop.DBus.Error.UnixProcessIdUnknown"},
	{"BindMountMachine", "sssbb .host /etc /mnt true true", noSupport},
	{"BindMountMachine", "sssbb bb /etc mnt true true", badArgs},
	{"BindMountMachine", "sssbb bb /nonexistent /mnt true true", fileMissing},
	{"BindMountMachine", "sssbb bb /etc /nonexistent/x true false", fileMissing},
	{"CopyToMachine", "sss bb /nonexistent /tmp/x", fileMissing},
	{"CopyToMachine", "sss bb /etc/passwd /etc/passwd", "org.freedesktop.DBus.Error.FileExists"},
	{"OpenMachineShell", "sssasas bb root /bin/sh 0 1 novalue", badArgs},
	{"OpenMachineShell", "sssasas nope root /bin/sh 0 0", noMachine},
	{"MapFromMachineUser", "su bb 4294967295", badArgs},
	{"MapToMachineUser", "u 4294967295", badArgs},
	{"MapToMachineGroup", "u 3000000000", noGroupMap},
	{"SetImageLimit", "st spare 1000000", noSupport},
}

// logRule writes each question that polkit is asked into the journal.
const logRule = `polkit.addRule(function(action, subject) {
	if (action.id.indexOf("org.freedesktop.machine1.") != 0) return null;
	var s = "ASKED " + action.id;
	["machine", "image", "name", "class", "verb", "user", "program", "command_line", "src", "dest", "new_name", "read_only", "mode"].forEach(function(k) {
		var v = action.lookup(k);
		if (v !== undefined && v !== null && v !== "") s += " " + k + "=" + v;
	});
	polkit.spawn(["/usr/bin/logger", "-t", "asked", s + " END"]); // polkit.log goes nowhere in a service
	return polkit.Result.NO;
});
`

// stockLacks says whether the running daemon is a stock one of before a version.
func stockLacks(h *host.Host, since int) bool {
	have := 252
	if h.Suite == host.Trixie {
		have = 257
	}
	return h.Impl == host.Stock && have < since
}

// stockLacksMethod says whether the table knows that the daemon is without it.
func stockLacksMethod(h *host.Host, name string) bool {
	for _, row := range apiTable {
		if row.name == name {
			return stockLacks(h, row.since)
		}
	}
	return false
}

// managerError is what a row's call as root ends with: the name of an error, or OK.
func managerError(h *host.Host, row apiRow, arguments string) string {
	r := h.Try("sh", "-c", row.call(arguments))
	return strings.TrimSpace(r.Stdout + r.Stderr)
}

func shellWords(s string) string {
	var out []string
	for _, w := range strings.Fields(s) {
		out = append(out, "'"+w+"'")
	}
	return strings.Join(out, " ")
}

// callScript calls a Manager method with arguments as busctl takes them, by way
// of a bus library of somebody else's, and prints the error's name.
const callScript = `import os, sys, dbus
name, sig, words = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "", sys.argv[3:]
def one(sig):
    if sig[0] == "a": return "a" + one(sig[1:])
    if sig[0] == "(": return sig[:sig.index(")") + 1]
    return sig[0]
def value(sig):
    if sig[0] == "a":
        n = int(words.pop(0))
        return dbus.Array([value(sig[1:]) for _ in range(n)], signature=sig[1:])
    if sig[0] == "(":
        rest, out = sig[1:-1], []
        while rest:
            s = one(rest); out.append(value(s)); rest = rest[len(s):]
        return dbus.Struct(out)
    if sig == "v": return value_variant(words.pop(0))
    w = words.pop(0)
    if sig == "b": return dbus.Boolean(w == "true")
    if sig == "s": return dbus.String(w)
    return {"y": dbus.Byte, "u": dbus.UInt32, "i": dbus.Int32, "t": dbus.UInt64, "x": dbus.Int64}[sig](int(w))
def value_variant(sig):
    v = value(sig)
    return type(v)(v, variant_level=1)
rest, args, whole = sig, [], sig
while rest:
    s = one(rest); args.append(value(s)); rest = rest[len(s):]
try:
    dbus.SystemBus().call_blocking("org.freedesktop.machine1", os.environ.get("CALL_PATH") or "/org/freedesktop/machine1",
        os.environ.get("CALL_IFACE") or "org.freedesktop.machine1.Manager", name, whole, args, timeout=20)
    print("OK")
except dbus.DBusException as e:
    print(e.get_dbus_name())
`

// TestAPI goes through the table: signatures by introspection, errors of root,
// and what polkit is asked when a user calls.
func TestAPI(t *testing.T) {
	onHosts(t, func(t *testing.T, h *host.Host) {
		h.BusyboxTree(t, "bb")
		h.BusyboxTree(t, "spare")
		h.WriteFile(t, "/call.py", callScript, 0o644)
		h.WriteFile(t, "/etc/polkit-1/rules.d/10-log.rules", logRule, 0o644)
		h.MustRun(t, "systemctl", "restart", "polkit.service")
		p := h.Start(t, "systemd-nspawn", "-q", "-M", "bb", "sleep", "1000000")
		waitMachine(t, h, "bb")
		conn := h.Bus(t)
		shapes := shapesOf(t, conn, busPath, managerIf)
		for _, row := range apiTable {
			t.Run(row.name, func(t *testing.T) {
				if stockLacks(h, row.since) {
					t.Skipf("stock has it since %d", row.since)
				}
				if got, want := shapes[row.name], row.in+" → "+row.out; got != want {
					t.Errorf("signature: got %q, want %q", got, want)
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
			})
		}
		h.Shell(t, `sleep 1000000 </dev/null >/dev/null 2>&1 & busctl call `+busName+` `+busPath+` `+managerIf+` CreateMachine "sayssusa(sv)" vmachine 0 t vm $! / 0`)
		for _, m := range mistakes {
			if stockLacksMethod(h, m.name) {
				continue
			}
			if got := managerError(h, apiRow{name: m.name}, m.arguments); got != m.want {
				t.Errorf("%s %s: got %s, want %s", m.name, m.arguments, got, m.want)
			}
		}
		for name, shape := range shapes {
			t.Errorf("%s %s is in no row", name, shape)
		}
		t.Run("registration", func(t *testing.T) {
			ours(t)
			sleeper := h.Start(t, "setpriv", "--reuid=alice", "--regid=alice", "--init-groups", "sleep", "1000000")
			pid := ""
			host.Eventually(t, 10*time.Second, func() error {
				r := h.Try("pgrep", "-u", "alice", "-x", "sleep")
				pid = strings.TrimSpace(r.Stdout)
				return exitError(r)
			})
			for _, row := range registrations {
				row.guarded = strings.ReplaceAll(row.guarded, "PID", pid)
				asked(t, h, row)
			}
			_ = sleeper.Signal(h, 9)
		})
		t.Run("inspect", func(t *testing.T) {
			ours(t)
			asked(t, h, apiRow{name: "GetMachineOSRelease", guarded: "s bb", action: "inspect-machines", details: "machine=bb verb=get_os_release"})
		})
		if !p.Running() {
			t.Errorf("the machine died: %s", p.Output())
		}
	})
}

func exitError(r host.Result) error {
	if r.Exit != 0 {
		return fmt.Errorf("%v", r)
	}
	return nil
}

// shapesOf are the signatures of the methods of one interface of an object.
func shapesOf(t *testing.T, conn *godbus.Conn, path godbus.ObjectPath, iface string) map[string]string {
	t.Helper()
	var text string
	if err := conn.Object(busName, path).Call("org.freedesktop.DBus.Introspectable.Introspect", 0).Store(&text); err != nil {
		t.Fatal(err)
	}
	var node introspected
	if err := xml.Unmarshal([]byte(text), &node); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, i := range node.Interfaces {
		if i.Name != iface {
			continue
		}
		for _, m := range i.Methods {
			in, res := "", ""
			for _, a := range m.Args {
				if a.Direction == "out" {
					res += a.Type
				} else {
					in += a.Type
				}
			}
			out[m.Name] = in + " → " + res
		}
	}
	return out
}

var askedLine = regexp.MustCompile(`ASKED org\.freedesktop\.machine1\.(.*) END`)

// asked calls as alice, whom polkit refuses everything, and compares what
// polkit was asked.
func asked(t *testing.T, h *host.Host, row apiRow) {
	t.Helper()
	cursor := h.MustRun(t, "sh", "-c", "journalctl -n 0 --show-cursor | sed -n 's/^-- cursor: //p'")
	r := h.TryAs("alice", "sh", "-c", row.call(row.guarded))
	if got := strings.TrimSpace(r.Stdout + r.Stderr); got != denied {
		t.Errorf("%s as a user: got %s, want %s", row.name, got, denied)
	}
	var got []string
	host.Eventually(t, 5*time.Second, func() error {
		log := h.MustRun(t, "journalctl", "--no-pager", "-o", "cat", "--after-cursor="+strings.TrimSpace(cursor))
		got = nil
		for _, m := range askedLine.FindAllStringSubmatch(log, -1) {
			got = append(got, m[1])
		}
		if len(got) == 0 {
			return fmt.Errorf("%s: polkit was not asked", row.name)
		}
		return nil
	})
	// What polkit asks itself next are the actions that imply this one. The rule
	// prints keys in one order; the table's line is sorted alike.
	want := row.action + " " + inRuleOrder(row.details)
	if h.Impl == host.Stock && h.Suite == host.Bookworm { // 252 tells no command_line
		want, _, _ = strings.Cut(want, " command_line=")
	}
	if got[0] != want {
		t.Errorf("%s: polkit was asked %q, want %q", row.name, got, want)
	}
}

// inRuleOrder sorts "key=value" pairs as logRule prints them. A value may have spaces.
func inRuleOrder(details string) string {
	keys := []string{"machine", "image", "name", "class", "verb", "user", "program", "command_line", "src", "dest", "new_name", "read_only", "mode"}
	at := regexp.MustCompile(`(^| )(` + strings.Join(keys, "|") + `)=`)
	values := map[string]string{}
	index := at.FindAllStringSubmatchIndex(details, -1)
	for i, m := range index {
		end := len(details)
		if i+1 < len(index) {
			end = index[i+1][0]
		}
		values[details[m[4]:m[5]]] = details[m[1]:end]
	}
	var out []string
	for _, k := range keys {
		if v, ok := values[k]; ok {
			out = append(out, k+"="+v)
		}
	}
	return strings.Join(out, " ")
}
