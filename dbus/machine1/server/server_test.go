package server

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus"
	"machined/dbus/machine1"
	"machined/internal/nsexec"
	"machined/internal/testbus"
	"machined/polkit"
)

func TestMain(m *testing.M) {
	nsexec.Main() // the test binary is the copy helper
	os.Exit(m.Run())
}

func start(t *testing.T, auth Authority) (*godbus.Conn, string, *fakeRegistry) {
	t.Helper()
	bus := testbus.Start(t)
	conn := bus.Connect()
	reg := newFakeRegistry()
	s := New(Config{Conn: conn, Registry: reg, Images: fakeImages{}, Authority: auth, BindsDir: t.TempDir()})
	if err := s.Export(t.Context()); err != nil {
		t.Fatal(err)
	}
	return bus.Connect(), conn.Names()[0], reg
}

func TestErrorsOfMethods(t *testing.T) {
	client, name, reg := start(t, nil)
	const invalidArgs, unsupported = dbus.ErrorInvalidArgs, dbus.ErrorNotSupported
	type props []machine1.Property
	variant := godbus.MakeVariant
	long := strings.Repeat("x", 1<<20)
	for _, tc := range []struct {
		method string
		args   []any
		want   string
	}{
		{"GetMachine", []any{"nope"}, machine1.ErrorNoSuchMachine},
		{"GetMachine", []any{"../x\n"}, machine1.ErrorNoSuchMachine},
		{"GetMachine", []any{long}, machine1.ErrorNoSuchMachine},
		{"GetMachine", []any{uint32(5)}, invalidArgs},
		{"GetMachine", []any{"web", "x"}, invalidArgs},
		{"GetMachineByPID", []any{uint32(1)}, machine1.ErrorNoMachineForPID},
		{"GetImage", []any{"nope"}, machine1.ErrorNoSuchImage},
		{"KillMachine", []any{"web", "bogus", int32(15)}, invalidArgs},
		{"KillMachine", []any{"web", "all", int32(0)}, invalidArgs},
		{"KillMachine", []any{"web", "all", int32(65)}, invalidArgs},
		{"KillMachine", []any{"web", "all", int32(-1)}, invalidArgs},
		{"GetMachineAddresses", []any{"web"}, machine1.ErrorNoPrivateNetworking},
		{"GetMachineAddresses", []any{"vm"}, unsupported},
		{"GetMachineSSHInfo", []any{"web"}, dbus.ErrorFileNotFound},
		{"GetMachineOSRelease", []any{"vm"}, unsupported},
		{"GetMachineUIDShift", []any{"vm"}, unsupported},
		{"OpenMachinePTY", []any{"vm"}, unsupported},
		{"OpenMachineShell", []any{"web", "", "bin/sh", []string{}, []string{}}, invalidArgs},
		{"OpenMachineShell", []any{"web", "", "/bin/sh", []string{}, []string{"x"}}, invalidArgs},
		{"OpenMachineShell", []any{"web", "a b", "/bin/sh", []string{}, []string{}}, invalidArgs},
		{"OpenMachineShell", []any{"web", "", "/bin/sh", []string{}, make([]string, 2000)}, dbus.ErrorLimitsExceeded},
		{"BindMountMachine", []any{".host", "/a", "/b", false, false}, unsupported},
		{"BindMountMachine", []any{"web", "a", "/b", false, false}, invalidArgs},
		{"BindMountMachine", []any{"web", "/a/../b", "/b", false, false}, invalidArgs},
		{"BindMountMachine", []any{"web", "/a", "/b", false, false}, unsupported}, // no mount namespace of its own
		{"CopyToMachineWithFlags", []any{"web", "/a", "/b", uint64(2)}, invalidArgs},
		{"CopyFromMachine", []any{"vm", "/a", "/b"}, unsupported},
		{"CopyFromMachine", []any{"web", "/nonexistent/a", "/b"}, dbus.ErrorFileNotFound},
		{"MapFromMachineUser", []any{".host", uint32(0)}, invalidArgs},
		{"MapToMachineUser", []any{uint32(5)}, machine1.ErrorNoSuchUserMapping},
		{"MapToMachineGroup", []any{uint32(70000)}, machine1.ErrorNoSuchGroupMapping},
		{"CleanPool", []any{"foo"}, invalidArgs},
		{"CloneImage", []any{".host", "../x", false}, invalidArgs},
		{"CreateMachine", []any{"x", []byte{1, 2}, "s", "container", uint32(0), "", props{}}, invalidArgs},
		{"CreateMachine", []any{"x", []byte{}, "s", "host", uint32(0), "", props{}}, invalidArgs},
		{"CreateMachine", []any{"x", []byte{}, "s", "container", uint32(1), "", props{}}, invalidArgs},
		{"CreateMachine", []any{"x", []byte{}, "s", "container", uint32(1 << 30), "", props{}}, "org.freedesktop.DBus.Error.UnixProcessIdUnknown"},
		{"CreateMachine", []any{"web", []byte{}, "s", "container", uint32(0), "", props{}}, machine1.ErrorMachineExists},
		{"RegisterMachineEx", []any{"x", props{{Name: "Nope", Value: variant("x")}}}, invalidArgs},
		{"RegisterMachineEx", []any{"x", props{{Name: "Class", Value: variant(5)}}}, invalidArgs},
		{"RegisterMachineEx", []any{"x", props{{Name: "LeaderPID", Value: variant(uint32(5))}}}, invalidArgs},
		{"RegisterMachine", []any{"fine", []byte{}, "s", "container", uint32(0), ""}, ""},
		{"RegisterMachineEx", []any{"fine", props{{Name: "Class", Value: variant("container")}}}, ""},
		{"CreateMachineWithNetwork", []any{"fine", make([]byte, 16), "s", "vm", uint32(0), "/", []int32{3}, props{{Name: "Slice", Value: variant("x.slice")}}}, ""},
		{"TerminateMachine", []any{"web"}, ""},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		err := client.Object(name, machine1.ManagerPath).CallWithContext(ctx, machine1.ManagerInterface+"."+tc.method, 0, tc.args...).Err
		cancel()
		if got := machine1.ErrorName(err); got != tc.want || tc.want == "" && err != nil {
			t.Errorf("%s: got %v (%s), want %q", tc.method, err, got, tc.want)
		}
	}
	if got := strings.Join(reg.heard(), "; "); !strings.Contains(got, "create fine") || !strings.Contains(got, "terminate web") {
		t.Errorf("registry was asked for %q", got)
	}
}

func TestSelf(t *testing.T) {
	client, name, _ := start(t, nil)
	v, err := client.Object(name, machine1.MachinePrefix+"self").GetProperty(machine1.MachineInterface + ".Name")
	if err != nil || v.Value() != "web" {
		t.Errorf("self is %v, %v; want web", v, err)
	}
}

// TestAuthorize goes through the answers an authority can give. The caller here
// is root, so the rule for others is asked directly.
func TestAuthorize(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer error
		want   string
	}{
		{"yes", nil, ""},
		{"no", polkit.ErrDenied, dbus.ErrorAccessDenied},
		{"ask", polkit.ErrInteractionRequired, dbus.ErrorInteractiveAuthorizationRequired},
		{"broken", errors.New("no answer"), dbus.ErrorAccessDenied},
	} {
		auth := &fakeAuthority{answer: tc.answer}
		s := New(Config{Authority: auth})
		err := s.ask(t.Context(), &dbus.Call{Sender: ":1.5"}, actionManage, details{"machine", "web", "verb", "kill"}, true)
		got := ""
		if err != nil {
			got = dbus.NameOf(err)
		}
		if got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
		want := "org.freedesktop.machine1.manage-machines map[machine:web verb:kill] true"
		if len(auth.asked) != 1 || auth.asked[0] != want {
			t.Errorf("%s: asked %q, want %q", tc.name, auth.asked, want)
		}
	}
}

// TestCopyEndsWithItsCaller: a caller that leaves the bus takes its copy along.
func TestCopyEndsWithItsCaller(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	client, name, _ := start(t, nil)
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	const size = 768 << 20
	if err := os.WriteFile(from, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	call := client.Object(name, machine1.ManagerPath).Go(machine1.ManagerInterface+".CopyFromMachine", 0, make(chan *godbus.Call, 1), "web", from, to)
	// The copier stands still until the server has let go of it, so that it
	// cannot be done before.
	copier := ownChild()
	for ; copier == nil; copier = ownChild() {
		select {
		case <-call.Done:
			t.Fatalf("copied %d bytes before anybody could look: %v", size, call.Err)
		case <-time.After(time.Millisecond):
		}
	}
	if err := copier.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer copier.Signal(syscall.SIGCONT)
	before := openStreams(t)
	_ = client.Close()
	for end := time.Now().Add(10 * time.Second); openStreams(t) > before-2; { // the client's socket, and the server's pipe to the copier
		if time.Now().After(end) {
			t.Fatalf("the server holds on to the copier: %d streams, %d before", openStreams(t), before)
		}
		time.Sleep(time.Millisecond) // nothing tells when
	}
	if err := copier.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute) // a copier that is killed in the middle of a write ends with it
	for {
		if _, err := os.Lstat(to); errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the copy went on without its caller")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// ownChild is the child of this process that runs the same program; nil when
// there is none.
func ownChild() *os.Process {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	own, _ := os.Readlink("/proc/self/exe")
	ownArgs, _ := os.ReadFile("/proc/self/cmdline")
	for _, list := range lists {
		data, _ := os.ReadFile(list) // a thread may be gone
		for _, field := range strings.Fields(string(data)) {
			exe, _ := os.Readlink("/proc/" + field + "/exe")
			args, _ := os.ReadFile("/proc/" + field + "/cmdline")
			if exe != own || bytes.Equal(args, ownArgs) { // the latter is about to be executed
				continue
			}
			if pid, err := strconv.Atoi(field); err == nil {
				if p, err := os.FindProcess(pid); err == nil {
					return p
				}
			}
		}
	}
	return nil
}

func openStreams(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, fd := range fds {
		if target, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.HasPrefix(target, "socket:") || strings.HasPrefix(target, "pipe:") {
			n++
		}
	}
	return n
}
