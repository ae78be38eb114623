package userdb

import (
	"bufio"
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"machined/internal/mapped"
	"machined/internal/nsexec"
	"machined/registry"
	"machined/varlink"
)

type table []registry.Machine

func (t table) Get(name string) (registry.Machine, error) {
	for _, m := range t {
		if m.Name == name {
			return m, nil
		}
	}
	return registry.Machine{}, errors.New("no such machine")
}
func (t table) List() []registry.Machine { return t }

func TestRecords(t *testing.T) {
	ids := &mapped.Directory{
		Machines: table{{Name: "deb", Class: registry.ClassContainer, Leader: registry.Process{PID: 10}}},
		ReadMap: func(registry.Process, mapped.Kind) (nsexec.IDMap, error) {
			return nsexec.IDMap{{Inside: 0, Outside: 524288, Count: 65536}}, nil
		},
	}
	server := varlink.NewServer(varlink.Config{Log: logrus.New(), Interfaces: []varlink.Interface{Interface(ids)}})
	path := filepath.Join(t.TempDir(), Service)
	l, err := varlink.Listen(path, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- server.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	const service = `"service":"io.systemd.Machine"`
	tests := []struct{ method, parameters, want string }{
		{"GetUserRecord", `{"uid":524289,` + service + `}`, `{"parameters":{"record":{"userName":"vu-deb-1","uid":524289,"gid":65534,"realName":"UID 1 of Container deb","homeDirectory":"/","shell":"/usr/sbin/nologin","locked":true,"service":"io.systemd.Machine","disposition":"container"},"incomplete":false}}`},
		{"GetGroupRecord", `{"groupName":"vg-deb-0",` + service + `}`, `{"parameters":{"record":{"groupName":"vg-deb-0","gid":524288,"description":"GID 0 of Container deb","service":"io.systemd.Machine","disposition":"container"},"incomplete":false}}`},
		{"GetUserRecord", `{"uid":524289,"userName":"vu-deb-1",` + service + `}`, `"vu-deb-1"`},
		{"GetUserRecord", `{"uid":524289,"userName":"vu-deb-2",` + service + `}`, errConflictingRecord},
		{"GetUserRecord", `{"uid":1000,` + service + `}`, errNoRecordFound},
		{"GetUserRecord", `{"userName":"root",` + service + `}`, errNoRecordFound},
		{"GetUserRecord", `{` + service + `}`, errEnumerationNotAllowed},
		{"GetUserRecord", `{"uid":524289,"service":"x"}`, errBadService},
		{"GetUserRecord", `{"uid":524289}`, varlink.ErrorInvalidParameter},
		{"GetUserRecord", `{"uid":-1,` + service + `}`, varlink.ErrorInvalidParameter},
		{"GetMemberships", `{` + service + `}`, errNoRecordFound},
		{"GetMemberships", `{"service":""}`, errBadService},
	}
	for _, tt := range tests {
		if _, err := conn.Write([]byte(`{"method":"io.systemd.UserDatabase.` + tt.method + `","parameters":` + tt.parameters + "}\x00")); err != nil {
			t.Fatal(err)
		}
		got, err := r.ReadString(0)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(got, tt.want) {
			t.Errorf("%s %s: got %s, want %s", tt.method, tt.parameters, got, tt.want)
		}
	}
}
