package dbus_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"machined/dbus"
	"machined/internal/testbus"
)

const (
	testName = "org.machined.Test"
	testPath = godbus.ObjectPath("/org/machined/test")
)

// serve exports a test object and returns a client.
func serve(t *testing.T, extra ...dbus.Method) (client, server *godbus.Conn) {
	t.Helper()
	bus := testbus.Start(t)
	server = bus.Connect()
	tree := dbus.TreeOf(server)
	methods := append([]dbus.Method{
		{Name: "Echo", In: dbus.Args("s text"), Out: dbus.Args("s text"), Handler: func(_ context.Context, c *dbus.Call, _ any) ([]any, error) {
			return []any{c.String(0)}, nil
		}},
		{Name: "Fail", Handler: func(context.Context, *dbus.Call, any) ([]any, error) {
			return nil, fmt.Errorf("open %q: %w", "x", unix.EROFS)
		}},
		{Name: "Panic", Handler: func(context.Context, *dbus.Call, any) ([]any, error) { panic("test") }},
		{Name: "Who", Out: dbus.Args("u uid", "u pid"), Handler: func(ctx context.Context, c *dbus.Call, _ any) ([]any, error) {
			creds, err := c.Credentials(ctx)
			if err != nil {
				return nil, err
			}
			p, err := creds.Process()
			if err != nil {
				return nil, err
			}
			defer p.Close()
			return []any{creds.UID, uint32(p.PID())}, nil
		}},
		{Name: "PassFD", In: dbus.Args("h fd"), Out: dbus.Args("h fd"), Handler: func(_ context.Context, c *dbus.Call, _ any) ([]any, error) {
			f, err := c.File(0)
			return []any{f}, err
		}},
	}, extra...)
	value := "one"
	tree.Add(testPath, nil, &dbus.Interface{Name: testName, Methods: methods, Properties: []dbus.Property{
		{Name: "Plain", Type: "s", Emits: dbus.EmitsConst, Get: func(context.Context, any) (any, error) { return value, nil }},
		{Name: "Writable", Type: "s", Emits: dbus.EmitsFalse, Get: func(context.Context, any) (any, error) { return value, nil },
			Set: func(_ context.Context, _ *dbus.Call, _ any, v godbus.Variant) error {
				value, _ = v.Value().(string)
				return nil
			}},
	}})
	tree.AddChildren(testPath+"/child", dbus.Children{
		Find: func(_ context.Context, _ *dbus.Call, label string) (any, error) {
			if label == "a" {
				return "object", nil
			}
			return nil, nil
		},
		List: func(context.Context) []string { return []string{"a"} },
	})
	if err := tree.Watch(context.Background()); err != nil {
		t.Fatal(err)
	}
	return bus.Connect(), server
}

func call(client, server *godbus.Conn, path godbus.ObjectPath, method string, args ...any) *godbus.Call {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return client.Object(server.Names()[0], path).CallWithContext(ctx, method, 0, args...)
}

func TestErrorsOfCalls(t *testing.T) {
	client, server := serve(t)
	const props = "org.freedesktop.DBus.Properties."
	for _, tc := range []struct {
		name   string
		path   godbus.ObjectPath
		method string
		args   []any
		want   string // error name; "" for success
		text   string
	}{
		{"echo", testPath, testName + ".Echo", []any{"x"}, "", ""},
		{"type", testPath, testName + ".Echo", []any{uint32(65)}, dbus.ErrorInvalidArgs, "Invalid arguments 'u' to call org.machined.Test.Echo(), expecting 's'."},
		{"number", testPath, testName + ".Echo", nil, dbus.ErrorInvalidArgs, ""},
		{"long", testPath, testName + ".Echo", []any{strings.Repeat("x", 10<<20)}, dbus.ErrorLimitsExceeded, ""},
		{"errno", testPath, testName + ".Fail", nil, "System.Error.EROFS", `open "x": Read-only file system`},
		{"panic", testPath, testName + ".Panic", nil, dbus.ErrorFailed, ""},
		{"method", testPath, testName + ".Nope", nil, dbus.ErrorUnknownMethod, "Unknown method Nope or interface org.machined.Test."},
		{"interface", testPath, "org.nope.Nope", nil, dbus.ErrorUnknownMethod, "Unknown method Nope or interface org.nope."},
		{"object", "/nope", testName + ".Echo", []any{"x"}, dbus.ErrorUnknownObject, "Unknown object '/nope'."},
		{"child", testPath + "/child/b", testName + ".Echo", []any{"x"}, dbus.ErrorUnknownObject, ""},
		{"parent of children", testPath + "/child", testName + ".Echo", []any{"x"}, dbus.ErrorUnknownMethod, "Unknown method Echo or interface org.machined.Test."},
		{"get", testPath, props + "Get", []any{testName, "Plain"}, "", ""},
		{"get unknown", testPath, props + "Get", []any{testName, "Nope"}, dbus.ErrorUnknownProperty, "Unknown interface org.machined.Test or property Nope."},
		{"get all unknown", testPath, props + "GetAll", []any{"foo.bar"}, dbus.ErrorUnknownInterface, "Unknown interface 'foo.bar'."},
		{"set constant", testPath, props + "Set", []any{testName, "Plain", godbus.MakeVariant("x")}, dbus.ErrorPropertyReadOnly, "Property 'Plain' is not writable."},
		{"set type", testPath, props + "Set", []any{testName, "Writable", godbus.MakeVariant(5)}, dbus.ErrorInvalidArgs, ""},
		{"set", testPath, props + "Set", []any{testName, "Writable", godbus.MakeVariant("two")}, "", ""},
		{"ping", testPath, "org.freedesktop.DBus.Peer.Ping", nil, "", ""},
		{"peer", testPath, "org.freedesktop.DBus.Peer.Nope", nil, dbus.ErrorUnknownMethod, "Unknown method 'Nope' on interface 'org.freedesktop.DBus.Peer'."},
		{"parent", "/org", "org.freedesktop.DBus.Introspectable.Introspect", nil, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := call(client, server, tc.path, tc.method, tc.args...).Err
			if tc.want == "" {
				if err != nil {
					t.Errorf("got %v, want success", err)
				}
				return
			}
			var got godbus.Error
			if !errors.As(err, &got) || got.Name != tc.want {
				t.Fatalf("got %#v, want %s", err, tc.want)
			}
			if tc.text != "" && got.Error() != tc.text {
				t.Errorf("text = %q, want %q", got.Error(), tc.text)
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	client, server := serve(t)
	var uid, pid uint32
	if err := call(client, server, testPath, testName+".Who").Store(&uid, &pid); err != nil {
		t.Fatal(err)
	}
	if int(uid) != os.Geteuid() || int(pid) != os.Getpid() {
		t.Errorf("got %d/%d, want %d/%d", uid, pid, os.Geteuid(), os.Getpid())
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestDescriptorsAreClosed sends descriptors where none are wanted, in arrays,
// in variants and in great number; none may stay open, and the server lives.
func TestDescriptorsAreClosed(t *testing.T) {
	client, server := serve(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := godbus.UnixFD(null.Fd())
	var back godbus.UnixFD
	if err := call(client, server, testPath, testName+".PassFD", fd).Store(&back); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(back), &st); err != nil || st.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("descriptor that came back is %#x, %v; want /dev/null", st.Rdev, err)
	}
	_ = unix.Close(int(back))
	before := openFDs(t)
	for range 20 {
		for _, arg := range []any{
			fd, []godbus.UnixFD{fd, fd}, map[string]godbus.UnixFD{"a": fd}, godbus.MakeVariant(fd), godbus.MakeVariant([]godbus.UnixFD{fd}),
			[]struct {
				S string
				V godbus.Variant
			}{{"x", godbus.MakeVariant(fd)}},
			[][]godbus.UnixFD{{fd}},
		} {
			if err := call(client, server, testPath, testName+".Echo", arg).Err; err == nil {
				t.Fatalf("%T was taken for a string", arg)
			}
		}
	}
	// The server's end of a call may close descriptors after its reply.
	for deadline := time.Now().Add(5 * time.Second); openFDs(t) > before; {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors are open, %d were", openFDs(t), before)
		}
		_ = call(client, server, testPath, testName+".Echo", "x").Err
	}
}

func TestContextEndsWhenCallerLeaves(t *testing.T) {
	started, ended := make(chan struct{}), make(chan struct{})
	client, server := serve(t, dbus.Method{Name: "Wait", Handler: func(ctx context.Context, _ *dbus.Call, _ any) ([]any, error) {
		close(started)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}})
	client.Object(server.Names()[0], testPath).Go(testName+".Wait", 0, nil)
	<-started
	_ = client.Close()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("call goes on without its caller")
	}
}

// TestFloodCostsOthersNothing blocks every slot of one caller; another one is
// answered all the same, and the flood's excess is refused.
func TestFloodCostsOthersNothing(t *testing.T) {
	release := make(chan struct{})
	client, server := serve(t, dbus.Method{Name: "Block", Handler: func(ctx context.Context, _ *dbus.Call, _ any) ([]any, error) {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return nil, nil
	}})
	const flood = 400
	done := make(chan *godbus.Call, flood)
	for range flood {
		client.Object(server.Names()[0], testPath).Go(testName+".Block", 0, done)
	}
	if err := call(server, server, testPath, testName+".Echo", "x").Err; err != nil {
		t.Errorf("another caller: %v", err)
	}
	refused := 0
	for refused < flood-256 {
		select {
		case c := <-done:
			if c.Err == nil {
				t.Fatal("a blocked call was answered")
			}
			refused++
		case <-time.After(10 * time.Second):
			t.Fatalf("%d calls refused, want %d", refused, flood-256)
		}
	}
	close(release)
}

func TestNestedVariantsDoNotEndTheConnection(t *testing.T) {
	client, server := serve(t)
	v := godbus.MakeVariant("x")
	for range 30 {
		v = godbus.MakeVariant(v)
		_ = call(client, server, testPath, testName+".Echo", v).Err
	}
	if err := call(client, server, testPath, testName+".Echo", "x").Err; err != nil {
		t.Error(err)
	}
}

func TestConnectSystemOrder(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
	if got := dbus.SystemAddress(); got != "unix:path=/nonexistent" {
		t.Errorf("address = %q", got)
	}
	if _, err := dbus.ConnectSystem(t.Context()); err == nil {
		t.Error("connected to a socket that does not exist")
	}
}

// TestConnectGivesUp meets a listener that never answers.
func TestConnectGivesUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := dbus.Connect(ctx, "unix:path="+path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want a deadline", err)
	}
}

func TestErrnoNames(t *testing.T) {
	for errno, want := range map[unix.Errno]string{
		unix.EPERM: dbus.ErrorAccessDenied, unix.ENOENT: dbus.ErrorFileNotFound, unix.ESRCH: "org.freedesktop.DBus.Error.UnixProcessIdUnknown",
		unix.EBUSY: "System.Error.EBUSY", unix.EROFS: "System.Error.EROFS", unix.EOPNOTSUPP: dbus.ErrorNotSupported,
	} {
		if got := dbus.NameOf(fmt.Errorf("x: %w", errno)); got != want {
			t.Errorf("%v is %s, want %s", errno, got, want)
		}
	}
}

func TestTyped(t *testing.T) {
	row := []any{"a", []string{"b"}, true}
	in := godbus.MakeVariantWithSignature([][]any{row}, godbus.ParseSignatureMust("a(sasb)"))
	out, err := dbus.Typed(in)
	if err != nil {
		t.Fatal(err)
	}
	if got := out.Signature().String(); got != "a(sasb)" {
		t.Errorf("signature = %s", got)
	}
	if got := godbus.SignatureOf(out.Value()).String(); got != "a(sasb)" {
		t.Errorf("signature of the value = %s", got)
	}
}

func FuzzTyped(f *testing.F) {
	for _, sig := range []string{"s", "a(sv)", "a{sv}", "aah", "(i(ss)v)"} {
		f.Add(sig)
	}
	f.Fuzz(func(t *testing.T, sig string) {
		parsed, err := godbus.ParseSignature(sig)
		if err != nil || parsed.Empty() || !parsed.Single() {
			return
		}
		_, _ = dbus.Typed(godbus.MakeVariantWithSignature([]any{}, parsed))
	})
}

// TestInvokePassesInteractive: the caller's leave to ask a person arrives.
func TestInvokePassesInteractive(t *testing.T) {
	client, server := serve(t, dbus.Method{Name: "Interactive", In: dbus.Args("s text"), Out: dbus.Args("b may"), Handler: func(_ context.Context, c *dbus.Call, _ any) ([]any, error) {
		return []any{c.Interactive}, nil
	}})
	for _, want := range []bool{true, false} {
		var got bool
		err := dbus.Invoke(t.Context(), client, dbus.Request{
			Service: server.Names()[0], Path: testPath, Interface: testName, Method: "Interactive", Interactive: want,
		}, "x").Store(&got)
		if err != nil || got != want {
			t.Errorf("Interactive: %t: got %t, %v", want, got, err)
		}
	}
}
