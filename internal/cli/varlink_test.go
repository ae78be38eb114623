package cli

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// TestCallVarlink calls a service that answers with what the test says.
func TestCallVarlink(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, answer, want, fail string
	}{
		{name: "reply", answer: `{"parameters":{"value":"yes"}}` + "\x00", want: "yes"},
		{name: "reply without parameters", answer: `{}` + "\x00"},
		{name: "error", answer: `{"error":"io.systemd.MachineInstance.NotSupported","parameters":{}}` + "\x00", fail: "NotSupported"},
		{name: "no reply", answer: "", fail: "connection reset by peer"},
		{name: "half a reply", answer: `{"parameters":{`, fail: "connection reset by peer"},
		{name: "no JSON", answer: "hello\x00", fail: "read reply of"},
		{name: "endless", answer: strings.Repeat("x", varlinkReplyLimit+1), fail: "too long"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "s")
			listener, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			asked := make(chan string, 1)
			go func() {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				call, _ := bufio.NewReader(conn).ReadString(0)
				asked <- call
				_, _ = io.WriteString(conn, test.answer)
			}()
			var reply struct{ Value string }
			err = CallVarlink(context.Background(), "unix:"+path, "a.b.C", map[string]string{"name": "x"}, &reply)
			if want := `{"method":"a.b.C","parameters":{"name":"x"}}` + "\x00"; <-asked != want {
				t.Errorf("the call was not %q", want)
			}
			if test.fail == "" && (err != nil || reply.Value != test.want) {
				t.Errorf("got %q, error %v; want %q", reply.Value, err, test.want)
			}
			if test.fail != "" && (err == nil || !strings.Contains(err.Error(), test.fail)) {
				t.Errorf("got error %v, want %q", err, test.fail)
			}
			var answer *VarlinkError
			if test.name == "error" && !errors.As(err, &answer) {
				t.Errorf("error reply: got %T, want *VarlinkError", err)
			}
		})
	}
	if err := CallVarlink(context.Background(), "vsock:1:2", "a.b.C", nil, nil); err == nil {
		t.Error("an address that is no path was accepted")
	}
}
