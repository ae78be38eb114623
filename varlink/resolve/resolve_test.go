package resolve

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"machined/nss"
	"machined/registry"
	"machined/varlink"
)

type table struct{ list []registry.Machine }

func (t *table) Get(name string) (registry.Machine, error) {
	return registry.Machine{}, registry.ErrNoSuchMachine
}
func (t *table) List() []registry.Machine { return t.list }

type addresses struct{}

func (addresses) Of(m registry.Machine) ([]nss.Address, error) {
	if m.Name != "deb" {
		return nil, errors.New("no network of its own")
	}
	return []nss.Address{{IP: netip.MustParseAddr("10.0.0.2")}, {IP: netip.MustParseAddr("fd00::2")}}, nil
}

func TestHook(t *testing.T) {
	machines := &table{list: []registry.Machine{
		{Name: ".host", Class: registry.ClassHost},
		{Name: "deb", Class: registry.ClassContainer, NetIfs: []int{7}},
		{Name: "shared", Class: registry.ClassContainer},
	}}
	hook := New(machines, addresses{})
	server := varlink.NewServer(varlink.Config{Log: logrus.New(), Interfaces: []varlink.Interface{hook.Interface()}})
	path := filepath.Join(t.TempDir(), "s")
	l, err := varlink.Listen(path, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- server.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()
	dial := func() (net.Conn, func() string) {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		r := bufio.NewReader(conn)
		return conn, func() string {
			text, err := r.ReadString(0)
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSuffix(text, "\x00")
		}
	}
	conn, receive := dial()
	tests := []struct{ name, question, want string }{
		{"address", `[{"class":1,"type":1,"name":"deb"}]`, `{"parameters":{"rcode":0,"answer":[{"rr":{"key":{"class":1,"type":1,"name":"deb"},"address":[10,0,0,2]},"raw":"A2RlYgAAAQABAAAAAAAECgAAAg==","ifindex":7}]}}`},
		{"wrapped key, case, final dot", `[{"key":{"class":1,"type":1,"name":"DEB."}}]`, `"address":[10,0,0,2]`},
		{"other type", `[{"class":1,"type":16,"name":"deb"}]`, `{"parameters":{"rcode":0}}`},
		{"below", `[{"class":1,"type":1,"name":"www.deb"}]`, `{"parameters":{"rcode":3}}`},
		{"suffix without a dot", `[{"class":1,"type":1,"name":"xdeb"}]`, `{"parameters":{}}`},
		{"no network", `[{"class":1,"type":1,"name":"shared"}]`, `{"parameters":{}}`},
		{"stranger", `[{"class":1,"type":1,"name":"example.org"}]`, `{"parameters":{}}`},
		{"empty", `[]`, `InvalidParameter`},
		{"no name", `[{"class":1,"type":1}]`, `InvalidParameter`},
		{"not an array", `5`, `InvalidParameter`},
	}
	for _, tt := range tests {
		if _, err := conn.Write([]byte(`{"method":"io.systemd.Resolve.Hook.ResolveRecord","parameters":{"question":` + tt.question + "}}\x00")); err != nil {
			t.Fatal(err)
		}
		if got := receive(); !strings.Contains(got, tt.want) {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}

	conn, receive = dial()
	if _, err := conn.Write([]byte(`{"method":"io.systemd.Resolve.Hook.QueryFilter","more":true}` + "\x00")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got, want := receive(), `{"parameters":{"filterDomains":["deb","shared"]},"continues":true}`; got != want {
			t.Errorf("filter: got %s, want %s", got, want)
		}
		hook.MachineAdded(registry.Machine{})
	}
}
