package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"machined/internal/sys"
	"machined/polkit"
	"machined/registry"
	"machined/varlink"
	"machined/varlink/service"
)

// fakeRegistry holds one container of user 1000, whose leader is this process,
// and the host.
type fakeRegistry struct {
	created []registry.CreateRequest
	done    []string
}

func (f *fakeRegistry) AwaitEnd(context.Context, string) {}

func (f *fakeRegistry) Check(req registry.CreateRequest) error {
	if req.Name == "deb" {
		return registry.ErrMachineExists
	}
	return nil
}

func (f *fakeRegistry) Create(_ context.Context, req registry.CreateRequest) (registry.Machine, error) {
	f.created = append(f.created, req)
	return registry.Machine{}, nil
}

func (f *fakeRegistry) Register(ctx context.Context, req registry.CreateRequest) (registry.Machine, error) {
	return f.Create(ctx, req)
}

func (f *fakeRegistry) Unregister(_ context.Context, name string) error {
	f.done = append(f.done, "unregister "+name)
	return nil
}

func (f *fakeRegistry) Terminate(_ context.Context, name string) error {
	if name == registry.HostName {
		return registry.ErrNotSupported
	}
	f.done = append(f.done, "terminate "+name)
	return nil
}

func (f *fakeRegistry) Kill(_ context.Context, name, whom string, sig unix.Signal) error {
	if name == registry.HostName {
		return registry.ErrNotSupported
	}
	f.done = append(f.done, "kill "+name+" "+whom+" "+sig.String())
	return nil
}

func (f *fakeRegistry) List() []registry.Machine {
	return []registry.Machine{
		{Name: ".host", Class: registry.ClassHost, Leader: registry.Process{PID: 1}, VSockCID: registry.VSockCIDAny},
		{Name: "deb", Class: registry.ClassContainer, UID: 1000, Leader: registry.Process{PID: os.Getpid()}, VSockCID: registry.VSockCIDAny},
		{Name: "qemu", Class: registry.ClassVM, Leader: registry.Process{PID: os.Getpid()}, VSockCID: 7},
	}
}

func (f *fakeRegistry) Get(name string) (registry.Machine, error) {
	for _, m := range f.List() {
		if m.Name == name {
			return m, nil
		}
	}
	return registry.Machine{}, registry.ErrNoSuchMachine
}

func (f *fakeRegistry) ByPID(pid int) (registry.Machine, error) {
	if pid == os.Getpid() {
		return f.Get("deb")
	}
	return registry.Machine{}, registry.ErrNoMachineForPID
}

func (f *fakeRegistry) Owns(name string, uid uint32) bool {
	m, err := f.Get(name)
	return err == nil && m.UID == uid
}

func (f *fakeRegistry) Leader(string) (*sys.Process, error) { return sys.OpenProcess(os.Getpid()) }
func (f *fakeRegistry) Notify(registry.Listener)            {}

// fakeAuthority writes down what it is asked.
type fakeAuthority struct {
	err  error
	asks []string
}

func (f *fakeAuthority) CheckProcess(_ context.Context, p *sys.Process, _ uint32, action string, details map[string]string, interactive bool) error {
	text, _ := json.Marshal(details)
	ask := action + " " + string(text)
	if interactive {
		ask += " interactive"
	}
	if p.PID() != os.Getpid() {
		ask += " of a stranger"
	}
	f.asks = append(f.asks, ask)
	return f.err
}

func start(t *testing.T, auth Authority) (*fakeRegistry, func(call string) string) {
	t.Helper()
	reg := &fakeRegistry{}
	dir := t.TempDir()
	s := New(Config{Registry: reg, Authority: auth, Log: logrus.New(), RunDir: dir, OwnUID: ^uint32(0)})
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Serve(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", filepath.Join(dir, "systemd/machine/io.systemd.MachineImage"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	r := bufio.NewReader(conn)
	return reg, func(call string) string {
		t.Helper()
		if _, err := conn.Write(append([]byte(call), 0)); err != nil {
			t.Fatal(err)
		}
		text, err := r.ReadString(0)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSuffix(text, "\x00")
	}
}

func TestErrors(t *testing.T) {
	_, call := start(t, nil)
	tests := []struct{ name, method, parameters, want string }{
		{"nothing given", "Terminate", `{}`, errNoSuchMachine},
		{"bad name", "Terminate", `{"name":"a/b"}`, `{"parameter":"name"}`},
		{"unknown", "Terminate", `{"name":"nope"}`, errNoSuchMachine},
		{"list without more", "List", `{}`, varlink.ErrorExpectedMore},
		{"name and process disagree", "List", `{"name":"qemu","pid":0}`, errNoSuchMachine},
		{"other boot", "List", `{"pid":{"pid":1,"bootId":"00000000000000000000000000000001"}}`, errNoSuchMachine},
		{"bad process", "List", `{"pid":{"pidfdId":1}}`, `{"parameter":"pid"}`},
		{"negative process", "List", `{"pid":-1}`, `{"parameter":"pid"}`},
		{"unknown parameter", "List", `{"nmae":"deb"}`, `{"parameter":"nmae"}`},
		{"bad metadata", "List", `{"name":"deb","acquireMetadata":"maybe"}`, `{"parameter":"acquireMetadata"}`},
		{"signal", "Kill", `{"name":"deb","signal":65}`, `{"parameter":"signal"}`},
		{"no signal", "Kill", `{"name":"deb"}`, `{"parameter":"signal"}`},
		{"whom", "Kill", `{"name":"deb","signal":15,"whom":"me"}`, `{"parameter":"whom"}`},
		{"signal to the host", "Kill", `{"name":".host","signal":15}`, `"errno":95`},
		{"end of the host", "Terminate", `{"name":".host"}`, `"errno":95`},
		{"mode", "Open", `{"name":"deb","mode":"window"}`, `{"parameter":"mode"}`},
		{"relative path, no shell", "Open", `{"name":"deb","mode":"tty","path":"sh"}`, `{"parameter":"path"}`},
		{"signal to nobody in particular", "Kill", `{"name":".host","signal":15,"whom":""}`, `"errno":95`},
		{"user of a tty", "Open", `{"name":"qemu","mode":"tty","user":"root"}`, errNotSupported},
		{"shell of a vm", "Open", `{"name":"qemu","mode":"shell"}`, errNotSupported},
		{"map without ids", "MapFrom", `{"name":"deb"}`, `{"parameter":"uid"}`},
		{"map of a vm", "MapFrom", `{"name":"qemu","uid":0}`, errNotSupported},
		{"host uid", "MapTo", `{"uid":1000}`, errUserInHostRange},
		{"host gid", "MapTo", `{"gid":1000}`, errGroupInHostRange},
		{"relative source", "BindMount", `{"name":"deb","source":"etc"}`, `{"parameter":"source"}`},
		{"dots in destination", "CopyTo", `{"name":"deb","source":"/etc","destination":"/a/../b"}`, `{"parameter":"destination"}`},
		{"root of a vm", "OpenRootDirectory", `{"name":"qemu"}`, errNotSupported},
		{"taken", "Register", `{"name":"deb","class":"container"}`, errMachineExists},
		{"class", "Register", `{"name":"x","class":"host"}`, `{"parameter":"class"}`},
		{"id", "Register", `{"name":"x","class":"vm","id":"xyz"}`, `{"parameter":"id"}`},
		{"interface", "Register", `{"name":"x","class":"vm","ifIndices":[0]}`, `{"parameter":"ifIndices"}`},
		{"control address", "Register", `{"name":"x","class":"vm","controlAddress":"x"}`, `{"parameter":"controlAddress"}`},
		{"two leaders", "Register", `{"name":"x","class":"vm","leader":1,"leaderProcessId":{"pid":2}}`, `{"parameter":"leader"}`},
	}
	for _, tt := range tests {
		got := call(`{"method":"io.systemd.Machine.` + tt.method + `","parameters":` + tt.parameters + `}`)
		if !strings.Contains(got, tt.want) || !strings.Contains(got, `"error"`) {
			t.Errorf("%s: got %s, want an error with %s", tt.name, got, tt.want)
		}
	}
}

func TestRegister(t *testing.T) {
	reg, call := start(t, nil)
	if os.Getuid() != 0 {
		t.Skip("needs root, who is let through")
	}
	got := call(`{"method":"io.systemd.Machine.Register","parameters":{"name":"x","class":"vm","id":"00112233-4455-6677-8899-aabbccddeeff","vSockCid":9,"ifIndices":[3,4],"allocateUnit":true,"controlAddress":"/run/c"}}`)
	if got != `{"parameters":{}}` || len(reg.created) != 1 {
		t.Fatalf("got %s with %d requests, want one", got, len(reg.created))
	}
	r := reg.created[0]
	if r.Name != "x" || r.Class != registry.ClassVM || r.ID[1] != 0x11 || r.VSockCID != 9 || len(r.NetIfs) != 2 ||
		r.Supervisor != nil || r.ControlAddress != "/run/c" || !r.Sender.Trusted {
		t.Errorf("got %+v", r)
	}
}

func TestAuthorize(t *testing.T) {
	owner := registry.Machine{Name: "deb", UID: 1000}
	tests := []struct {
		name  string
		uid   uint32
		owned *registry.Machine
		err   error
		asked bool
		want  string // error name; empty: allowed
	}{
		{"root", 0, nil, polkit.ErrDenied, false, ""},
		{"owner", 1000, &owner, polkit.ErrDenied, false, ""},
		{"owner where that does not count", 1000, nil, polkit.ErrDenied, true, varlink.ErrorPermissionDenied},
		{"other, allowed", 1001, &owner, nil, true, ""},
		{"other, denied", 1001, &owner, polkit.ErrDenied, true, varlink.ErrorPermissionDenied},
		{"other, challenge", 1001, &owner, polkit.ErrInteractionRequired, true, varlink.ErrorInteractiveAuthRequired},
	}
	for _, tt := range tests {
		auth := &fakeAuthority{err: tt.err}
		s := New(Config{Registry: &fakeRegistry{}, Log: logrus.New(), Authority: auth, OwnUID: ^uint32(0)})
		var got error
		server := varlink.NewServer(varlink.Config{Log: logrus.New(), Interfaces: []varlink.Interface{{
			Name: "t.t", Methods: map[string]varlink.Method{"T": {Handler: func(ctx context.Context, call *varlink.Call) (any, error) {
				call.Peer.UID = tt.uid
				got = s.authorize(ctx, call, tt.owned, "manage-machines", details{"name", "deb", "verb", "kill"})
				return nil, nil
			}}},
		}}})
		path := filepath.Join(t.TempDir(), "s")
		l, err := varlink.Listen(path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- server.Serve(ctx, l) }()
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte(`{"method":"t.t.T","parameters":{"allowInteractiveAuthentication":true}}` + "\x00"))
		_, _ = conn.Read(make([]byte, 100))
		_ = conn.Close()
		cancel()
		<-done
		name := ""
		if e, ok := got.(*varlink.Error); ok {
			name = e.Name
		}
		if name != tt.want {
			t.Errorf("%s: got %v, want %q", tt.name, got, tt.want)
		}
		if want := `org.freedesktop.machine1.manage-machines {"name":"deb","verb":"kill"} interactive`; tt.asked && (len(auth.asks) != 1 || auth.asks[0] != want) {
			t.Errorf("%s: polkit was asked %q, want %q", tt.name, auth.asks, want)
		} else if !tt.asked && len(auth.asks) != 0 {
			t.Errorf("%s: polkit was asked %q", tt.name, auth.asks)
		}
	}
}

func TestDescriptionsNameAllMethods(t *testing.T) {
	s := New(Config{Registry: &fakeRegistry{}, Log: logrus.New()})
	for _, iface := range []varlink.Interface{s.machineInterface(), s.imageInterface(), service.Interface(service.Config{Log: s.log, OwnUID: s.cfg.OwnUID})} {
		if !strings.Contains(iface.Description, "interface "+iface.Name+"\n") {
			t.Errorf("description of %s lacks its name", iface.Name)
		}
		if got, want := strings.Count(iface.Description, "\nmethod "), len(iface.Methods); got != want {
			t.Errorf("%s: %d methods are described, %d are there", iface.Name, got, want)
		}
		for name := range iface.Methods {
			if !strings.Contains(iface.Description, "\nmethod "+name+"(") {
				t.Errorf("method %s.%s is not described", iface.Name, name)
			}
		}
	}
}

func TestParseID(t *testing.T) {
	for in, want := range map[string]bool{
		"00112233445566778899aabbccddeeff":     true,
		"00112233-4455-6677-8899-aabbccddeeff": true,
		"00112233445566778899aabbccddeef":      false,
		"0011223344556677-8899-aabb-ccdd-eeff": false,
		"zz112233445566778899aabbccddeeff":     false,
		"":                                     false,
	} {
		if _, ok := parseID(in); ok != want {
			t.Errorf("%q: got %v, want %v", in, ok, want)
		}
	}
}
