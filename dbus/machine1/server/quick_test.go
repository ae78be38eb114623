package server

import (
	"os"
	"reflect"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"machined/dbus/machine1"
	"machined/registry"
)

// TestQuickAnswers has the reader and the handler of a method answer the same,
// as machines come and go. A call that names no interface is the handler's.
func TestQuickAnswers(t *testing.T) {
	client, name, reg := start(t, nil)
	ask := func(iface, method string, args ...any) []any {
		t.Helper()
		msg := &godbus.Message{Type: godbus.TypeMethodCall, Body: args, Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant(name),
			godbus.FieldPath:        godbus.MakeVariant(machine1.ManagerPath),
			godbus.FieldMember:      godbus.MakeVariant(method),
		}}
		if iface != "" {
			msg.Headers[godbus.FieldInterface] = godbus.MakeVariant(iface)
		}
		if len(args) > 0 {
			msg.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(args...))
		}
		call := client.Send(msg, make(chan *godbus.Call, 1))
		<-call.Done
		if call.Err != nil {
			return []any{call.Err.Error()}
		}
		return call.Body
	}
	for _, step := range []struct {
		what   string
		change func()
		listed int
	}{
		{"at first", func() {}, 3},
		{"one more", func() {
			reg.machines["a.b"] = registry.Machine{Name: "a.b", Class: registry.ClassVM, Service: "é", Leader: registry.Process{PID: 4711}}
		}, 4},
		{"two less", func() { delete(reg.machines, "vm"); delete(reg.machines, "a.b") }, 2},
	} {
		reg.mu.Lock()
		step.change()
		reg.mu.Unlock()
		for _, call := range []struct {
			method string
			args   []any
		}{
			{"ListMachines", nil},
			{"GetMachine", []any{"web"}}, {"GetMachine", []any{"a.b"}}, {"GetMachine", []any{"nope"}}, {"GetMachine", []any{""}},
			{"GetMachineByPID", []any{uint32(os.Getpid())}}, {"GetMachineByPID", []any{uint32(4711)}}, {"GetMachineByPID", []any{uint32(0)}},
			{"GetMachineByPID", []any{uint32(1 << 31)}},
		} {
			quick, slow := ask(machine1.ManagerInterface, call.method, call.args...), ask("", call.method, call.args...)
			if !reflect.DeepEqual(quick, slow) {
				t.Errorf("%s: %s%v: got %v, want %v", step.what, call.method, call.args, quick, slow)
			}
		}
		if list, _ := ask(machine1.ManagerInterface, "ListMachines")[0].([][]any); len(list) != step.listed {
			t.Errorf("%s: got %d machines, want %d", step.what, len(list), step.listed)
		}
	}
}
